"""In a chapter's kernel a warning that our own modules raise is an error."""

import warnings

warnings.filterwarnings("error", module=r"gradbook(\..*)?")

"""In a chapter's kernel a warning that our own modules raise is an error."""

import warnings

warnings.filterwarnings("error", module=r"gradbook(\..*)?")
# transformers imports the bar of tqdm that asks for widgets; no page shows a bar.
warnings.filterwarnings("ignore", message="IProgress not found")

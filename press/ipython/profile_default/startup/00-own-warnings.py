"""In a chapter's kernel a warning that our own modules raise is an error."""

import logging
import warnings

warnings.filterwarnings("error", module=r"gradbook(\..*)?")
# transformers imports the bar of tqdm that asks for widgets; no page shows a bar.
warnings.filterwarnings("ignore", message="IProgress not found")
# peft imports bitsandbytes, which on a CPU says that it has no kernel that no page asks for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

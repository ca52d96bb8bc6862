"""Pictures, safely: decoding under limits, and the filters."""

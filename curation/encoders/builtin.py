"""builtin:copy and builtin:layout: the two encoders that need no weights."""

from __future__ import annotations

from granary.curation.encoders.copy_descriptor import CopyDescriptor
from granary.curation.encoders.layout_descriptor import LayoutDescriptor
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError


def load_builtin(spec: EncoderSpec, device: str = "auto") -> CopyDescriptor | LayoutDescriptor:
    """Return the encoder that a spec names; it runs on the CPU, whatever the device.

    Raises:
        UserError: there is no built-in encoder of that name, or it takes no options.
    """
    spec.check_options()
    if spec.target == "copy":
        return CopyDescriptor()
    if spec.target == "layout":
        return LayoutDescriptor()
    raise UserError(f"encoder '{spec.text}' is not built in; write builtin:copy or builtin:layout")

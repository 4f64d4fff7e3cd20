"""Ship a network: ONNX checked in onnxruntime, ``.pt2``, or Python source with its weights.

Imports: all rooms up to graph. Start reading: ``entry``, then ``module`` (how a
subnet becomes plain torch), ``onnx``, ``source``.
"""

from nestify.emit.entry import export
from nestify.emit.report import ExportReport, ExportWarning

__all__ = ["ExportReport", "ExportWarning", "export"]

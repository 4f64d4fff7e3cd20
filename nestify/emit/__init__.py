"""Ship a network: ONNX checked in onnxruntime, ``.pt2``, or Python source with its weights."""

from nestify.emit.entry import export
from nestify.emit.report import ExportReport, ExportWarning

__all__ = ["ExportReport", "ExportWarning", "export"]

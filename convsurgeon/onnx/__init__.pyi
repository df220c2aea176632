from convsurgeon.bundle.mobile import mobile_check as mobile_check
from convsurgeon.int8.quantize import convert_fp16 as convert_fp16, quantize as quantize
from convsurgeon.int8.target import Target as Target
from convsurgeon.onnx.exporter import export as export
from convsurgeon.onnx.parity import check_parity as check_parity

"""What ONNX files take in onnxruntime, said no more firmly than the machine allows.

`standalone` is the script that goes to devices. It imports nothing of ours, so it can stand in this room, where
sessions are opened with the very options that it uses.
"""

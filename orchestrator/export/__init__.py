"""A network as a file for others: pt2, onnx or safetensors, compared with the network before it is done."""

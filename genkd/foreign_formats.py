"""What a file that is not safetensors probably is, so that the error says what to do about it."""

from __future__ import annotations

CONVERT = (
    "convert it on the machine that made it: "
    "safetensors.torch.save_file(model.state_dict(), 'teacher.safetensors')"
)
NEVER_OPENED = "a pickle can run code and is never opened here; "

# Beginning of the file, what it is, what to do. The first match counts.
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "is a zip archive, as torch.save writes (pickle)", NEVER_OPENED + CONVERT),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes", CONVERT),
    (b"\x93NUMPY", "is a NumPy array", CONVERT),
    (b"GGUF", "is a GGUF language model", "give an image classifier as safetensors"),
    (b"\x1f\x8b", "is a gzip archive", "unpack it first, then give the .safetensors file in it"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the model", "run: git lfs pull"),
    (b"<", "is a web page or XML, not a model", "download the file itself, not its page"),
    (b"{", "is a JSON file, perhaps an index or a card", "give the .safetensors file beside it"),
)
PICKLE_PROTOCOLS = range(2, 6)


def describe_format(beginning: bytes) -> tuple[str, str]:
    """Name the format of a file from its first bytes.

    Args:
        beginning: The first bytes, up to 512.

    Returns:
        The rest of a sentence that begins with the file's name, and a hint.
    """
    for signature, what, hint in SIGNATURES:
        if beginning.startswith(signature):
            return what, hint
    if beginning[:1] == b"\x80" and len(beginning) > 1 and beginning[1] in PICKLE_PROTOCOLS:
        return "is a pickle file", NEVER_OPENED + CONVERT
    if beginning[4:8] == b"TFL3":
        return "is a TensorFlow Lite model", CONVERT
    if beginning[257:262] == b"ustar":
        return "is a tar archive", "unpack it first, then give the .safetensors file in it"
    # An ONNX file is a protobuf that begins with field 1 (ir_version), then a string field.
    if beginning[:1] == b"\x08" and beginning[2:3] in (b"\x12", b"\x1a", b"\x3a"):
        return "is an ONNX model", "call it .onnx to use it as a black box, or " + CONVERT
    if len(beginning) < 9:
        return "is too short to be a model", "copy or download the file again"
    return "is not a safetensors file", CONVERT

"""Files of Caffe, written by protocol buffers' own library with the part of caffe.proto that holds weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKED = ("data", "diff", "double_data", "dim")
_MESSAGES = {
    "BlobShape": {"dim": (1, "INT64", "REPEATED")},
    "BlobProto": {
        **{name: (k, "INT32", "OPTIONAL") for k, name in enumerate(("num", "channels", "height", "width"), 1)},
        "data": (5, "FLOAT", "REPEATED"),
        "diff": (6, "FLOAT", "REPEATED"),
        "shape": (7, ".caffe.BlobShape", "OPTIONAL"),
        "double_data": (8, "DOUBLE", "REPEATED"),
    },
    "LayerParameter": {
        "name": (1, "STRING", "OPTIONAL"),
        "type": (2, "STRING", "OPTIONAL"),
        "phase": (10, "INT32", "OPTIONAL"),
        "loss_weight": (5, "FLOAT", "REPEATED"),
        "blobs": (7, ".caffe.BlobProto", "REPEATED"),
    },
    "V1LayerParameter": {
        "name": (4, "STRING", "OPTIONAL"),
        "type": (5, "INT32", "OPTIONAL"),
        "blobs": (6, ".caffe.BlobProto", "REPEATED"),
    },
    "NetParameter": {
        "name": (1, "STRING", "OPTIONAL"),
        "layers": (2, ".caffe.V1LayerParameter", "REPEATED"),
        "input": (3, "STRING", "REPEATED"),
        "layer": (100, ".caffe.LayerParameter", "REPEATED"),
    },
}


def _net() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, label) in fields.items():
            field = described.field.add(name=name, number=number, label=getattr(field_of, f"LABEL_{label}"))
            if kind.startswith("."):
                field.type, field.type_name = field_of.TYPE_MESSAGE, kind
            else:
                field.type = getattr(field_of, f"TYPE_{kind}")
            field.options.packed = name in _PACKED
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


field_of = descriptor_pb2.FieldDescriptorProto
NetParameter = _net()


def caffemodel(blobs: Mapping[str, np.ndarray], *, old: bool = False, double: bool = False) -> bytes:
    """A network of these `LAYER.weight` and `LAYER.bias`; `old`: in the form before version 1 of the layers."""
    net = NetParameter(name="VGG_ILSVRC_16_layers", input=["data", "im_info"])
    add = net.layers if old else net.layer
    add.add(name="relu")
    for name in dict.fromkeys(name.rpartition(".")[0] for name in blobs):
        layer = add.add(name=name)
        for part in ("weight", "bias"):
            if f"{name}.{part}" not in blobs:
                continue
            values = np.asarray(blobs[f"{name}.{part}"])
            blob = layer.blobs.add()
            (blob.double_data if double else blob.data).extend(values.flatten().tolist())
            blob.diff.extend([0.5] * 3)
            if old:
                blob.num, blob.channels, blob.height, blob.width = (*(1,) * (4 - values.ndim), *values.shape)
            else:
                blob.shape.dim.extend(values.shape)
    return net.SerializeToString()

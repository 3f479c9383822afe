"""Releases that come with deltas: a model of 400 kB, two fifths of which each release changes."""

import bz2
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
from onnx import numpy_helper
from tests.client_fakes import LONG_AGO, FakeServer
from tests.device_fakes import Bundle, bundle
from tests.slots_fakes import scaling_model

from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.format import Header, Method
from wildflower.ota.delta.tensors import regions_of
from wildflower.ota.release.manifest import Delta, FileEntry

ELEMENTS = 100_000
GIBIBYTE = 1 << 30


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def model_of(order: int) -> bytes:
    """Return the model of a release: it multiplies with `order`, and carries a table."""
    table = np.random.default_rng(0).normal(size=ELEMENTS).astype(np.float32)
    for number in range(1, order + 1):
        rng = np.random.default_rng(number)
        table[rng.choice(ELEMENTS, 2 * ELEMENTS // 5, replace=False)] *= np.float32(1.001)
    model = onnx.load_from_string(scaling_model(float(order)))
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return bytes(model.SerializeToString())


@cache
def delta_of(base: int, order: int) -> bytes:
    """Return the delta from one release's model to another's."""
    old, new = model_of(base), model_of(order)
    return diff(old, new, regions_of(old), regions_of(new))


def bomb(base: bytes, target: bytes) -> bytes:
    """Return a delta for these files whose 100 bytes unpack to gibibytes."""
    added, literal = b"", bz2.compress(bytes(1 << 24)) * (GIBIBYTE >> 24)
    control = bz2.compress(struct.pack("<QQQ", 0, len(target), 0))
    patch = struct.pack("<8sqqq", b"BSDIFF40", len(control), len(added), len(target))
    before, after = (hashlib.sha256(one).digest() for one in (base, target))
    header = Header(Method.BSDIFF, before, after, len(base), len(target))
    return header.to_bytes() + patch + control + added + literal


def with_deltas(order: int, deltas: Sequence[tuple[bytes, bytes]] = ()) -> Bundle:
    """Return a release and its blobs; deltas are (old model, delta)."""
    plain = bundle(order, scale=float(order), not_before=LONG_AGO)
    data = model_of(order)
    model = FileEntry("model", "model.onnx", digest_of(data), len(data))
    named = tuple(Delta(digest_of(old), digest_of(one), len(one)) for old, one in deltas)
    release = replace(plain.release, files=(model, *plain.release.files[1:]), deltas=named)
    blobs = {digest_of(one): one for one in (data, *(delta for _, delta in deltas))}
    return Bundle(release, {**plain.blobs, **blobs})


def offer_deltas(
    server: FakeServer, order: int, deltas: Sequence[tuple[bytes, bytes]] = ()
) -> Bundle:
    """Publish such a release and roll it out to everybody."""
    one = with_deltas(order, deltas)
    server.releases.publish(one)
    server.releases.roll_out(one)
    return one

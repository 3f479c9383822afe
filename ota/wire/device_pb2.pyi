from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: str
    def __init__(self, agent: _Optional[str] = ...) -> None: ...

class Hint(_message.Message):
    __slots__ = ("kind", "training")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Hint.Kind]
        KIND_TRAINING: _ClassVar[Hint.Kind]
        KIND_RELEASE: _ClassVar[Hint.Kind]
    KIND_UNSPECIFIED: Hint.Kind
    KIND_TRAINING: Hint.Kind
    KIND_RELEASE: Hint.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    kind: Hint.Kind
    training: str
    def __init__(self, kind: _Optional[_Union[Hint.Kind, str]] = ..., training: _Optional[str] = ...) -> None: ...

class SignedDocument(_message.Message):
    __slots__ = ("document", "signature")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    signature: bytes
    def __init__(self, document: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("sequence", "payload")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    payload: bytes
    def __init__(self, sequence: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class SummaryBatch(_message.Message):
    __slots__ = ("stream", "summaries")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SUMMARIES_FIELD_NUMBER: _ClassVar[int]
    stream: bytes
    summaries: _containers.RepeatedCompositeFieldContainer[Summary]
    def __init__(self, stream: _Optional[bytes] = ..., summaries: _Optional[_Iterable[_Union[Summary, _Mapping]]] = ...) -> None: ...

class SummaryAck(_message.Message):
    __slots__ = ("stream", "through", "refused")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    stream: bytes
    through: int
    refused: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stream: _Optional[bytes] = ..., through: _Optional[int] = ..., refused: _Optional[_Iterable[int]] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ("self_report",)
    SELF_REPORT_FIELD_NUMBER: _ClassVar[int]
    self_report: bytes
    def __init__(self, self_report: _Optional[bytes] = ...) -> None: ...

class CheckInReply(_message.Message):
    __slots__ = ("training", "next_s", "server_time")
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    NEXT_S_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    training: str
    next_s: int
    server_time: str
    def __init__(self, training: _Optional[str] = ..., next_s: _Optional[int] = ..., server_time: _Optional[str] = ...) -> None: ...

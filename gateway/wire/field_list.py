"""HOT PATH. Owns header fields that are shared between equal heads. Apart, because a compiled module cannot hold a
subclass of list (`gateway.compiled`)."""

from gateway.call import Headers


class FieldList(list[tuple[bytes, bytes]]):
    """Header fields, maybe shared between equal heads; `memo` is the application's, as `RequestHead.memo`."""

    __slots__ = ("memo",)

    def __init__(self, fields: Headers) -> None:
        super().__init__(fields)
        self.memo: object = None

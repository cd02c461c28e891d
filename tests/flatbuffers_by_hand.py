"""Flatbuffers read by slot numbers, apart from any generated code."""


def fields(data, position):
    """Slots of a flatbuffer's table → position of the value."""

    def number(at, size, signed=False):
        return int.from_bytes(data[at : at + size], "little", signed=signed)

    table = position - number(position, 4, signed=True)
    count = (number(table, 2) - 4) // 2
    slots = [number(table + 4 + 2 * i, 2) for i in range(count)]
    return {i: position + s for i, s in enumerate(slots) if s}


def follow(data, at):
    return at + int.from_bytes(data[at : at + 4], "little")


def text_at(data, at):
    start = follow(data, at)
    size = int.from_bytes(data[start : start + 4], "little")
    return bytes(data[start + 4 : start + 4 + size]).decode()


def entries(data, at):
    start = follow(data, at)
    count = int.from_bytes(data[start : start + 4], "little")
    return [start + 4 + 4 * i for i in range(count)]

"""Verifies a Tollway receipt, or that a head grew, with nothing but Python: python3 verify_receipt.py FILE KEY_HEX.

Written from docs/receipts.md, RFC 6962, RFC 9162 and RFC 8032 alone; it shares no code with what made the receipt.
Prints the proven call (or the two sizes) as JSON and exits 0; else exits 1 and says on standard error what is wrong.
"""

import json
import sys
from hashlib import sha256, sha512

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
FIELDS = (
    "call_id tenant key_id plan model model_version price_version t_ns outcome reason rows compute_ns request_bytes"
)
FIELDS += " reply_bytes charge_nanos currency protocol"


def need(is_true, problem):
    if not is_true:
        raise ValueError(problem)


def add(a, b):  # points of edwards25519 as (X, Y, Z, T)
    k, m = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = m - k, d - c, d + c, m + k
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n, point):
    total = (0, 1, 1, 0)
    for bit in bin(n)[2:]:
        total = add(total, total)
        total = add(total, point) if bit == "1" else total
    return total


def point_of(data):
    y, sign = int.from_bytes(data, "little") & (1 << 255) - 1, data[31] >> 7
    need(len(data) == 32 and y < P, "no point of the curve")
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
    need(x * x % P == square and not (x == 0 and sign), "no point of the curve")
    x = x if x & 1 == sign else P - x
    return x, y, 1, x * y % P


def check_signature(public, signature, message):
    need(len(signature) == 64 and int.from_bytes(signature[32:], "little") < L, "signature: malformed")
    base = point_of((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    k = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little") % L
    left = times(int.from_bytes(signature[32:], "little"), base)
    right = add(point_of(signature[:32]), times(k, point_of(public)))
    need((left[0] * right[2] - right[0] * left[2]) % P == 0, "signature: not by this key")
    need((left[1] * right[2] - right[1] * left[2]) % P == 0, "signature: not by this key")


def pack(value):  # msgpack in its shortest form
    if isinstance(value, list):
        return bytes([0x90 + len(value)]) + b"".join(map(pack, value))
    if isinstance(value, int):
        for tag, size in ((0, 0), (0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
            if value < (1 << 8 * size if size else 128):
                return bytes([tag]) + value.to_bytes(size, "big") if size else bytes([value])
    data = value.encode() if isinstance(value, str) else value
    if isinstance(value, str) and len(data) < 32:
        return bytes([0xA0 + len(data)]) + data
    return bytes([0xD9 if isinstance(value, str) else 0xC4, len(data)]) + data


def unpack(data, at):  # (value, where it ends): arrays, texts, bytes and whole numbers
    tag, at = data[at], at + 1
    if tag < 0x80:
        return tag, at
    if 0x90 <= tag < 0xA0 or tag == 0xDC:
        count, at = (tag - 0x90, at) if tag < 0xA0 else (int.from_bytes(data[at : at + 2], "big"), at + 2)
        values = []
        for _ in range(count):
            value, at = unpack(data, at)
            values.append(value)
        return values, at
    if 0xA0 <= tag < 0xC0:
        return data[at : at + tag - 0xA0].decode(), at + tag - 0xA0
    size = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xC4: 1, 0xD9: 1, 0xC5: 2, 0xDA: 2}[tag]
    number, at = int.from_bytes(data[at : at + size], "big"), at + size
    if tag in (0xCC, 0xCD, 0xCE, 0xCF):
        return number, at
    return data[at : at + number] if tag in (0xC4, 0xC5) else data[at : at + number].decode(), at + number


def node(left, right):
    return sha256(b"\1" + left + right).digest()


def root_of(leaf, index, size, path):  # RFC 9162, 2.1.3.2
    need(0 <= index < size, "index: beyond the tree")
    last, found = size - 1, leaf
    for one in path:
        need(last, "path: too long")
        if index & 1 or index == last:
            found = node(one, found)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            found = node(found, one)
        index, last = index >> 1, last >> 1
    need(last == 0, "path: too short")
    return found


def check_head(head, public):
    need(head["key_id"] == sha256(public).hexdigest()[:16], "key_id: another key")
    message = pack([head[name] for name in ("tenant", "size", "root", "at_ns", "key_id")])
    check_signature(public, bytes.fromhex(head["signature"]), b"tollway tree head v1\n" + message)


def verify_receipt(receipt, public):
    need((receipt["version"], receipt["leaf_version"]) == (1, 2), "version: unknown")
    check_head(receipt["head"], public)
    records, count = [bytes.fromhex(one) for one in receipt["records"]], receipt["event_count"]
    need(receipt["block_count"] == -(-count // 16), "block_count: does not fit the calls")
    need(len(records) == min(16, count - 16 * receipt["block_index"]), "records: do not fill the block")
    leaf, path = sha256(b"\0" + b"".join(records)).digest(), [bytes.fromhex(one) for one in receipt["block_path"]]
    root = root_of(leaf, receipt["block_index"], receipt["block_count"], path)
    leaf = sha256(b"\0" + pack([receipt["tx_id"], count, receipt["leaf_version"], root])).digest()
    path = [bytes.fromhex(one) for one in receipt["tx_path"]]
    found = root_of(leaf, receipt["tx_index"], receipt["head"]["size"], path)
    need(found.hex() == receipt["head"]["root"], "tx_path: does not lead to the signed root")
    calls = [unpack(one, 0) for one in records]
    need(all(end == len(one) for (_, end), one in zip(calls, records, strict=True)), "records: more than a record")
    need(
        all(call[0] == "S" and call[2] == receipt["head"]["tenant"] for call, _ in calls), "records: of another tenant"
    )
    need(0 <= receipt["place"] < len(calls), "place: beyond the block")
    call = dict(zip(FIELDS.split(), calls[receipt["place"]][0][1:], strict=True))
    call["call_id"] = call["call_id"].hex()
    need(call["call_id"] == receipt["call_id"], "call_id: another call")
    return call


def verify_growth(proof, public):  # RFC 9162, 2.1.4.2
    need(proof["version"] == 1, "version: unknown")
    first, second = proof["first"], proof["second"]
    check_head(first, public)
    check_head(second, public)
    need(first["tenant"] == second["tenant"] and 0 < first["size"] <= second["size"], "heads: not of one tree")
    roots, path = [bytes.fromhex(one["root"]) for one in (first, second)], [bytes.fromhex(p) for p in proof["path"]]
    if first["size"] == second["size"]:
        need(roots[0] == roots[1] and not path, "path: equal sizes, other trees")
        return {"first": first["size"], "second": second["size"]}
    path = [roots[0], *path] if first["size"] & (first["size"] - 1) == 0 else path
    need(path, "path: is empty")
    at, last = first["size"] - 1, second["size"] - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for one in path[1:]:
        need(last, "path: too long")
        if at & 1 or at == last:
            old, new = node(one, old), node(one, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node(new, one)
        at, last = at >> 1, last >> 1
    need(last == 0 and [old, new] == roots, "path: the older tree is not the beginning of the newer one")
    return {"first": first["size"], "second": second["size"]}


def main(arguments):
    try:
        with open(arguments[0], encoding="utf-8") as file:
            document = json.load(file)
        found = (verify_growth if "second" in document else verify_receipt)(document, bytes.fromhex(arguments[1]))
    except (ValueError, KeyError, TypeError, IndexError, OSError, AttributeError, OverflowError) as error:
        return f"not proven: {error}"
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

/* Owns HPACK decoding (RFC 7541), reduced to what routing needs: is there a :path, which route is it, is there a
 * traceparent. The dynamic table is kept exactly, as entries without their text, so that any peer's encoder works. */
#include "backend.h"

#include <string.h>

#include "hpack_tables.h"

#define TEXT_BYTES 512 /* longer values are cut: no path of ours is so long */

struct node {
    int16_t next[2]; /* > 0: node; <= 0: minus the symbol */
};
static struct node tree[257];

void hpack_init(void) {
    int nodes = 1;
    for (int symbol = 0; symbol < 257; symbol++) {
        int at = 0;
        for (int bit = HUFFMAN[symbol].bits - 1; bit >= 0; bit--) {
            int16_t *next = &tree[at].next[(HUFFMAN[symbol].code >> bit) & 1];
            if (bit == 0) {
                *next = (int16_t)-symbol;
            } else {
                /* Node 0 is the root and never a child, so 0 still means "not made yet"; symbol 0 ("\0") is a leaf at
                 * the end of its own path, where no longer code passes. */
                if (*next == 0) *next = (int16_t)nodes++;
                at = *next;
            }
        }
    }
}

struct cursor {
    const uint8_t *at, *end;
    bool is_bad;
};

static uint64_t take_integer(struct cursor *cursor, int prefix_bits) {
    if (cursor->at >= cursor->end) return cursor->is_bad = true, 0;
    uint64_t most = (1u << prefix_bits) - 1, value = *cursor->at++ & most;
    if (value < most) return value;
    for (int shift = 0; shift < 28; shift += 7) {
        if (cursor->at >= cursor->end) break;
        uint8_t byte = *cursor->at++;
        value += (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return value;
    }
    cursor->is_bad = true;
    return 0;
}

struct text {
    char bytes[TEXT_BYTES];
    size_t count; /* the whole length, also when `bytes` is cut */
};

static void inflate(struct text *text, const uint8_t *data, size_t bytes) {
    int at = 0;
    text->count = 0;
    for (size_t i = 0; i < bytes; i++)
        for (int bit = 7; bit >= 0; bit--) {
            int next = tree[at].next[(data[i] >> bit) & 1];
            at = next > 0 ? next : 0;
            if (next > 0) continue;
            if (text->count < TEXT_BYTES) text->bytes[text->count] = (char)-next;
            text->count++;
        }
}

static void take_text(struct cursor *cursor, struct text *text) {
    text->count = 0;
    bool is_huffman = cursor->at < cursor->end && (*cursor->at & 0x80);
    uint64_t bytes = take_integer(cursor, 7);
    if (cursor->is_bad || bytes > (uint64_t)(cursor->end - cursor->at)) {
        cursor->is_bad = true;
        return;
    }
    if (is_huffman) {
        inflate(text, cursor->at, bytes);
    } else {
        memcpy(text->bytes, cursor->at, bytes < TEXT_BYTES ? bytes : TEXT_BYTES);
        text->count = bytes;
    }
    cursor->at += bytes;
}

static size_t kept(const struct text *text) { return text->count < TEXT_BYTES ? text->count : TEXT_BYTES; }

static uint8_t name_of(const struct text *text) {
    if (text->count == 5 && memcmp(text->bytes, ":path", 5) == 0) return NAME_PATH;
    if (text->count == 11 && memcmp(text->bytes, "traceparent", 11) == 0) return NAME_TRACEPARENT;
    return NAME_OTHER;
}

#define RING (sizeof((struct hpack_table *)0)->entries / sizeof(struct hpack_entry))

static void evict_to(struct hpack_table *table, unsigned bytes_max) {
    while (table->count > 0 && table->bytes > bytes_max) {
        table->count--;
        table->bytes -= table->entries[(table->first + table->count) % RING].size;
    }
}

static void insert(struct hpack_table *table, struct hpack_entry entry) {
    if (entry.size > table->bytes_max) {
        evict_to(table, 0); /* RFC 7541 §4.4: an entry larger than the table empties it */
        return;
    }
    evict_to(table, table->bytes_max - entry.size);
    table->first = (table->first + RING - 1) % RING;
    table->entries[table->first] = entry;
    table->count++;
    table->bytes += entry.size;
}

/* NULL for an index beyond both tables; static entries are made in `scratch`. */
static const struct hpack_entry *find(const struct hpack_table *table, uint64_t index, struct hpack_entry *scratch) {
    if (index == 0) return NULL;
    if (index <= STATIC_ENTRIES) {
        bool is_path = index == 4 || index == 5;
        *scratch = (struct hpack_entry){.name_bytes = STATIC_NAME_BYTES[index],
                                        .name = is_path ? NAME_PATH : NAME_OTHER,
                                        .route = ROUTE_UNKNOWN};
        return scratch;
    }
    index -= STATIC_ENTRIES + 1;
    return index < table->count ? &table->entries[(table->first + index) % RING] : NULL;
}

static void note(const struct hpack_entry *entry, uint8_t *route, bool *is_traced) {
    if (entry->name == NAME_PATH) *route = entry->route;
    if (entry->name == NAME_TRACEPARENT) *is_traced = true;
}

static void take_literal(struct cursor *cursor, struct hpack_table *table, int prefix_bits, struct hpack_entry *entry) {
    struct text text;
    uint64_t index = take_integer(cursor, prefix_bits);
    if (index > 0) {
        struct hpack_entry scratch;
        const struct hpack_entry *named = find(table, index, &scratch);
        if (named == NULL) {
            cursor->is_bad = true;
            return;
        }
        *entry = (struct hpack_entry){.name = named->name, .name_bytes = named->name_bytes};
    } else {
        take_text(cursor, &text);
        *entry = (struct hpack_entry){.name = name_of(&text), .name_bytes = (uint32_t)text.count};
    }
    take_text(cursor, &text);
    entry->size = entry->name_bytes + (uint32_t)text.count + 32;
    entry->route = entry->name == NAME_PATH ? (uint8_t)route_of(text.bytes, kept(&text)) : ROUTE_UNKNOWN;
}

bool hpack_decode(struct hpack_table *table, const uint8_t *block, size_t bytes, uint8_t *route, bool *is_traced) {
    struct cursor cursor = {.at = block, .end = block + bytes};
    *route = ROUTE_UNKNOWN;
    *is_traced = false;
    while (cursor.at < cursor.end && !cursor.is_bad) {
        uint8_t kind = *cursor.at;
        struct hpack_entry entry;
        if (kind & 0x80) { /* §6.1 indexed */
            const struct hpack_entry *known = find(table, take_integer(&cursor, 7), &entry);
            if (known == NULL) return false;
            note(known, route, is_traced);
        } else if ((kind & 0xe0) == 0x20) { /* §6.3 size update */
            uint64_t bytes_max = take_integer(&cursor, 5);
            if (bytes_max > HPACK_TABLE_BYTES) return false;
            table->bytes_max = (unsigned)bytes_max;
            evict_to(table, table->bytes_max);
        } else { /* §6.2 literal, with (01) or without indexing */
            bool is_kept = kind & 0x40;
            take_literal(&cursor, table, is_kept ? 6 : 4, &entry);
            if (cursor.is_bad) return false;
            note(&entry, route, is_traced);
            if (is_kept) insert(table, entry);
        }
    }
    return !cursor.is_bad;
}

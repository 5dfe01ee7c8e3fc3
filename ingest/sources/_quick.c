/* What is done for every sample, compiled: clean numeric CSV becomes typed columns, and times become small differences.
 *
 * The parser is strict on purpose: a line with another number of fields, a blank or quoted field, a plus sign or an
 * exponent, a value outside its limits: the first of these ends the call, and the caller reads that piece of text with
 * care. Nothing is allocated but one locale, nothing outside the given buffers is touched.
 */
#define _GNU_SOURCE /* strtod_l */
#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { SKIP = 0, U8 = 1, I16 = 2, U16 = 3, U32 = 4, I64 = 5, F32 = 6, F64 = 7, TIME_US = 8, WORD = 9 };

#define MAX_DIGITS 18
#define WORD_SLOTS 131072 /* a power of two, twice the largest number of words */
#define MAX_WORDS 65535

static const double POWERS_OF_TEN[19] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8, 1e9,
                                         1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18};
static const int64_t INTEGERS_OF_TEN[9] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
static const int64_t MICROS[7] = {1000000, 100000, 10000, 1000, 100, 10, 1};

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LITTLE_ENDIAN_HOST 1
#else
#define LITTLE_ENDIAN_HOST 0
#endif

/* The words met in the WORD columns of one table: their bytes one after another, and a hash table of their numbers. */
typedef struct {
    char *bytes;       /* capacity given */
    int64_t capacity;  /* of bytes */
    int64_t used;      /* of bytes */
    int32_t *ends;     /* MAX_WORDS: where each word ends in bytes */
    int32_t count;
    int32_t *slots;    /* WORD_SLOTS, 0 for free, else number + 1 */
} Words;

static inline uint64_t load(const char *p) {
    uint64_t w;
    memcpy(&w, p, 8);
    return w;
}

/* Not zero in each byte that is no digit, up to the first such byte; what comes after it means nothing. */
static inline uint64_t no_digits(uint64_t w) {
    return ((w & 0xF0F0F0F0F0F0F0F0ULL) ^ 0x3030303030303030ULL) |
           (((w + 0x0606060606060606ULL) & 0xF0F0F0F0F0F0F0F0ULL) ^ 0x3030303030303030ULL);
}

/* The number that the first n bytes are, 1 <= n <= 8 digits. */
static inline int64_t digits_value(uint64_t w, int n) {
    w <<= 8 * (8 - n);
    w = (w & 0x0F0F0F0F0F0F0F0FULL) * 2561 >> 8;
    w = (w & 0x00FF00FF00FF00FFULL) * 6553601 >> 16;
    return (int64_t)((w & 0x0000FFFF0000FFFFULL) * 42949672960001ULL >> 32);
}

/* The separators, commas and newlines, among the 64 bytes at p: bit i is that of byte i. */
static inline uint64_t separators(const char *p) {
    uint64_t found = 0;
#if defined(__SSE2__)
    const __m128i comma = _mm_set1_epi8(','), newline = _mm_set1_epi8('\n');
    for (int i = 0; i < 4; i++) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i));
        __m128i is = _mm_or_si128(_mm_cmpeq_epi8(bytes, comma), _mm_cmpeq_epi8(bytes, newline));
        found |= (uint64_t)(uint32_t)_mm_movemask_epi8(is) << (16 * i);
    }
#else
    for (int i = 0; i < 64; i++) found |= (uint64_t)(p[i] == ',' || p[i] == '\n') << i;
#endif
    return found;
}

/* The digits at p, at most eight of them, taken at once; returns how many there are. Eight bytes must be readable. */
static inline int lead(const char *p, int64_t *value) {
    uint64_t w = load(p), t = no_digits(w);
    int n = t ? __builtin_ctzll(t) >> 3 : 8;
    if (n == 0) return 0;
    *value = digits_value(w, n);
    return n;
}

/* An unsigned decimal number with at most MAX_DIGITS digits in all; returns its end, NULL where there is none. */
static const char *number_slow(const char *p, const char *end, int64_t *mantissa, int *decimals, int *digits) {
    int64_t m = 0;
    int n = 0, k = 0;
    unsigned d;
    while (p < end && (d = (unsigned)(*p - '0')) < 10u) { if (++n > MAX_DIGITS) return NULL; m = m * 10 + d; p++; }
    if (n == 0) return NULL;
    if (p < end && *p == '.') {
        p++;
        while (p < end && (d = (unsigned)(*p - '0')) < 10u) { if (++n > MAX_DIGITS) return NULL; m = m * 10 + d; p++; k++; }
        if (k == 0) return NULL;
    }
    *mantissa = m; *decimals = k; *digits = n;
    return p;
}

/* The same, eight digits at a time, where it can be done: little-endian, 32 bytes left, not too many digits. */
static inline const char *number(const char *p, const char *end, int64_t *mantissa, int *decimals, int *digits) {
    const char *begin = p;
    int64_t m, more;
    int n, k = 0;
    if (!LITTLE_ENDIAN_HOST || end - p < 32) return number_slow(p, end, mantissa, decimals, digits);
    n = lead(p, &m);
    if (n == 0) return NULL;
    p += n;
    if (n == 8) {
        int n2 = lead(p, &more);
        if (n2 == 8) return number_slow(begin, end, mantissa, decimals, digits);
        if (n2) { m = m * INTEGERS_OF_TEN[n2] + more; p += n2; n += n2; }
    }
    if (*p == '.') {
        k = lead(++p, &more);
        if (k == 0) return NULL;
        if (k == 8 || n + k > MAX_DIGITS) return number_slow(begin, end, mantissa, decimals, digits);
        m = m * INTEGERS_OF_TEN[k] + more;
        p += k;
    }
    *mantissa = m; *decimals = k; *digits = n + k;
    return p;
}

static int32_t word(Words *w, const char *p, int64_t n) {
    uint64_t h = 1469598103934665603ULL;
    for (int64_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211ULL;
    h ^= h >> 29;
    for (uint32_t at = (uint32_t)h & (WORD_SLOTS - 1);; at = (at + 1) & (WORD_SLOTS - 1)) {
        int32_t found = w->slots[at];
        if (found == 0) {
            if (w->count >= MAX_WORDS || w->used + n > w->capacity) return -1;
            memcpy(w->bytes + w->used, p, (size_t)n);
            w->used += n;
            w->ends[w->count] = (int32_t)w->used;
            w->slots[at] = ++w->count;
            return w->count - 1;
        }
        int32_t begin = found > 1 ? w->ends[found - 2] : 0;
        if (w->ends[found - 1] - begin == n && memcmp(w->bytes + begin, p, (size_t)n) == 0) return found - 1;
    }
}

/* One field of every row. */
typedef struct {
    char *out;           /* where its values go; eight bytes more than they take are writable */
    double low, high;    /* limits of a value */
    int64_t least, most; /* of a whole number: these limits and its type's */
    uint64_t text, mask; /* a word's last text with the separator, where it has at most eight bytes; mask 0: none */
    int32_t code;        /* of it */
    int32_t kind, shift; /* a value takes 1 << shift bytes */
    char separator;      /* that must follow */
} Field;

static const double LEAST[10] = {0, 0, INT16_MIN, 0, 0, -9.3e18, 0, 0, 0, 0};
static const double MOST[10] = {0, UINT8_MAX, INT16_MAX, UINT16_MAX, UINT32_MAX, 9.3e18, 0, 0, 0, 0};
static const int32_t SHIFTS[10] = {0, 0, 1, 1, 2, 3, 2, 3, 3, 2};

#define MAX_FIELDS 64
#define WINDOW 96 /* separators are looked for in 64 bytes, and a field's value in 24 */
#define DOUBT return -1 - row

static inline void remember(Field *field, const char *begin, const char *after, const char *end, int32_t code) {
    int64_t n = after - begin;
    field->mask = 0;
    if (LITTLE_ENDIAN_HOST && n <= 8 && end - begin >= 8) {
        field->mask = n == 8 ? ~0ULL : (1ULL << (8 * n)) - 1;
        field->text = load(begin) & field->mask;
        field->code = code;
    }
}

/* Seconds at p as microseconds, rounded; the point is a point whatever locale the process has. */
static int micros(const char *p, int64_t *value) {
    static locale_t plain = (locale_t)0;
    if (plain == (locale_t)0) plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (plain == (locale_t)0) return 0;
    *value = llrint(strtod_l(p, NULL, plain) * 1e6);
    return 1;
}

static int64_t clamp(double v) { return v <= -9e18 ? INT64_MIN : v >= 9e18 ? INT64_MAX : (int64_t)v; }

/* Any number field; returns where it ends (its separator is for the caller to see), NULL where it is doubtful. */
static const char *any_number(const char *p, const char *end, const Field *field, int64_t row) {
    const char *begin = p;
    const int negative = *p == '-';
    const int32_t kind = field->kind;
    int64_t m;
    int k, n;
    p = number(p + negative, end, &m, &k, &n);
    if (p == NULL) return NULL;
    if (kind < F32) {
        if (negative) m = -m;
        if (k || m < field->least || m > field->most) return NULL;
        switch (kind) {
            case U8: ((uint8_t *)field->out)[row] = (uint8_t)m; break;
            case I16: ((int16_t *)(void *)field->out)[row] = (int16_t)m; break;
            case U16: ((uint16_t *)(void *)field->out)[row] = (uint16_t)m; break;
            case U32: ((uint32_t *)(void *)field->out)[row] = (uint32_t)m; break;
            default: ((int64_t *)(void *)field->out)[row] = m; break;
        }
        return p;
    }
    double value = k ? (double)m / POWERS_OF_TEN[k] : (double)m;
    if (negative) { value = -value; m = -m; }
    if (!(value >= field->low && value <= field->high)) return NULL;
    if (kind == TIME_US) {
        int64_t *out = (int64_t *)(void *)field->out + row;
        if (k <= 6) *out = m * MICROS[k];
        else if (!micros(begin, out)) return NULL;
    } else {
        if (n > 15) return NULL;
        if (kind == F32) ((float *)(void *)field->out)[row] = (float)value;
        else ((double *)(void *)field->out)[row] = value;
    }
    return p;
}

/* As quick_whole, of one to four digits: half the width, so that the processor has half the work. */
static inline int quick_short(const char *p, int n, const Field *field, int64_t row) {
    uint32_t w, zeros = 0x30303030u << 8 * (4 - n);
    memcpy(&w, p, 4);
    w <<= 8 * (4 - n);
    const uint32_t wrong = ((w & 0xF0F0F0F0u) ^ zeros) | (((w + 0x06060606u) & 0xF0F0F0F0u) ^ zeros);
    w = (w & 0x0F0F0F0Fu) * 2561 >> 8;
    const int64_t m = (w & 0x00FF00FFu) * 6553601u >> 16;
    if (wrong || m < field->least || m > field->most) return 0;
    memcpy(field->out + (row << field->shift), &m, 8); /* the bytes too many are those of the next rows */
    return 1;
}

/* Stores the whole number that p[0..n) is and returns 1; 0 where it is something else, or has more than eight digits.
 * No branch depends on how long it is, which no processor could foretell. Eight bytes must be readable. */
static inline int quick_whole(const char *p, int64_t n, const Field *field, int64_t row) {
    if ((uint64_t)(n - 1) > 7) return 0;
    if (n <= 4) return quick_short(p, (int)n, field, row);
    const int shift = 8 * (8 - (int)n);
    const uint64_t w = load(p) << shift, zeros = 0x3030303030303030ULL << shift;
    const uint64_t wrong = ((w & 0xF0F0F0F0F0F0F0F0ULL) ^ zeros) |
                           (((w + 0x0606060606060606ULL) & 0xF0F0F0F0F0F0F0F0ULL) ^ zeros);
    const int64_t m = digits_value(w, 8);
    if (wrong || m < field->least || m > field->most) return 0;
    memcpy(field->out + (row << field->shift), &m, 8); /* the bytes too many are those of the next rows */
    return 1;
}

/* The same for up to seven digits, a point, and up to seven digits. 24 bytes must be readable. */
static inline int quick_decimal(const char *p, int64_t length, const Field *field, int64_t row) {
    int64_t m, more;
    const int n = lead(p, &m);
    if (n == 0 || n == 8 || p[n] != '.') return 0;
    const int k = lead(p + n + 1, &more);
    if (k == 0 || k == 8 || n + 1 + k != length) return 0;
    const double value = (double)(m * INTEGERS_OF_TEN[k] + more) / POWERS_OF_TEN[k];
    if (!(value >= field->low && value <= field->high)) return 0;
    if (field->kind == F32) ((float *)(void *)field->out)[row] = (float)value;
    else ((double *)(void *)field->out)[row] = value;
    return 1;
}

/* The same for seconds of ten digits, a point, and one to six digits, as microseconds. 24 bytes must be readable. */
static inline int quick_time(const char *p, int64_t length, const Field *field, int64_t row) {
    int64_t seconds, two, more;
    if (length < 12 || p[10] != '.' || lead(p, &seconds) != 8 || lead(p + 8, &two) != 2) return 0;
    const int k = lead(p + 11, &more);
    if (k == 0 || k > 6 || k + 11 != length) return 0;
    const int64_t m = (seconds * 100 + two) * INTEGERS_OF_TEN[k] + more;
    const double value = (double)m / POWERS_OF_TEN[k];
    if (!(value >= field->low && value <= field->high)) return 0;
    ((int64_t *)(void *)field->out)[row] = m * MICROS[k];
    return 1;
}

/* Stores the field p[0..n), after which its separator stands, if it is of the common kind; returns whether it did. */
static inline int quick_field(const char *p, int64_t n, const Field *field, int64_t row) {
    const int32_t kind = field->kind;
    if (p[n] != field->separator) return 0;
    if (kind == TIME_US) return quick_time(p, n, field, row);
    if (kind >= U8 && kind < F32) return quick_whole(p, n, field, row);
    if (kind == F32 || kind == F64) return quick_decimal(p, n, field, row);
    if (field->mask == 0 || (load(p) & field->mask) != field->text) return 0;
    if (kind == WORD) ((int32_t *)(void *)field->out)[row] = field->code;
    return 1;
}

/* A text field, of which only WORD is stored; returns where it ends, NULL where it is doubtful. */
static const char *any_text(const char *p, const char *end, Field *field, int64_t row, Words *words) {
    const char *begin = p;
    while (p < end && *p != ',' && *p != '\n' && *p != '"' && (unsigned char)*p < 0x80) p++;
    if (p >= end || *p == '"' || (unsigned char)*p >= 0x80) return NULL;
    int32_t code = 0;
    if (field->kind == WORD) {
        const char *stop = p;
        if (stop > begin && stop[-1] == '\r') stop--;
        if (stop == begin || *begin == ' ' || stop[-1] == ' ') return NULL;
        code = word(words, begin, stop - begin);
        if (code < 0) return NULL;
        ((int32_t *)(void *)field->out)[row] = code;
    }
    if (*p == field->separator) remember(field, begin, p + 1, end, code);
    return p;
}

static void plan(Field *fields, int32_t width, const int32_t *kinds, const double *lows, const double *highs,
                 void *const *outs) {
    for (int32_t c = 0; c < width; c++) {
        const int32_t kind = kinds[c];
        const double least = LEAST[kind] > lows[c] ? LEAST[kind] : lows[c];
        const double most = MOST[kind] < highs[c] ? MOST[kind] : highs[c];
        fields[c] = (Field){.out = outs[c], .low = lows[c], .high = highs[c], .least = clamp(ceil(least)),
                            .most = clamp(floor(most)), .kind = kind, .shift = SHIFTS[kind],
                            .separator = c == width - 1 ? '\n' : ','};
    }
}

/* Parses lines of `width` fields from buf[0..len) into outs[], from row `row` on. The text must end with a newline, and
 * each of outs have room for eight bytes beyond `capacity` values.
 * Returns the row after the last one, or -1 - row for the row of the first doubtful line. */
int64_t jobwatt_parse(const char *buf, int64_t len, int32_t width, const int32_t *kinds, const double *lows,
                      const double *highs, void *const *outs, int64_t row, int64_t capacity, Words *words) {
    const char *p = buf, *end = buf + len;
    Field fields[MAX_FIELDS];
    if (width > MAX_FIELDS) DOUBT;
    plan(fields, width, kinds, lows, highs, outs);
    while (p < end) {
        const char *base = p;
        uint64_t stops = 0; /* of the fields to come, from base on */
        if (row >= capacity) DOUBT;
        for (Field *field = fields; field < fields + width; field++) {
            if (LITTLE_ENDIAN_HOST && stops == 0 && end - p >= WINDOW) stops = separators(base = p);
            if (stops) {
                const char *stop = base + __builtin_ctzll(stops);
                stops &= stops - 1;
                if (quick_field(p, stop - p, field, row)) {
                    p = stop + 1;
                    continue;
                }
                stops = 0;
            }
            p = field->kind == SKIP || field->kind == WORD ? any_text(p, end, field, row, words)
                                                           : any_number(p, end, field, row);
            if (p == NULL) DOUBT;
            if (field->separator == '\n' && p < end && *p == '\r') p++;
            if (p >= end || *p != field->separator) DOUBT;
            p++;
        }
        row++;
    }
    return row;
}

static uint8_t *varint(uint8_t *out, uint64_t v) {
    for (; v >= 0x80; v >>= 7) *out++ = (uint8_t)(v | 0x80);
    *out++ = (uint8_t)v;
    return out;
}

static inline uint64_t zigzag(uint64_t v) { return (v << 1) ^ (v >> 63 ? ~0ULL : 0); }

#define BLOCK 128 /* values, in four miniblocks */
#define MINIBLOCK 32

/* Packs n whole numbers as Parquet's DELTA_BINARY_PACKED (encoding 5 of its format description); returns how many bytes
 * were written to out, which must have room for 9 n + 1024. */
int64_t jobwatt_pack_deltas(const int64_t *values, int64_t n, uint8_t *out) {
    const uint8_t *begin = out;
    out = varint(out, BLOCK);
    out = varint(out, BLOCK / MINIBLOCK);
    out = varint(out, (uint64_t)n);
    out = varint(out, n ? zigzag((uint64_t)values[0]) : 0);
    for (int64_t at = 1; at < n; at += BLOCK) {
        const int64_t left = n - at < BLOCK ? n - at : BLOCK;
        uint64_t steps[BLOCK] = {0};
        int64_t least = INT64_MAX;
        for (int64_t i = 0; i < left; i++) {
            steps[i] = (uint64_t)values[at + i] - (uint64_t)values[at + i - 1]; /* a difference may wrap around */
            if ((int64_t)steps[i] < least) least = (int64_t)steps[i];
        }
        for (int64_t i = 0; i < left; i++) steps[i] -= (uint64_t)least;
        out = varint(out, zigzag((uint64_t)least));
        uint8_t *widths = out;
        out += BLOCK / MINIBLOCK;
        for (int64_t mini = 0; mini < BLOCK / MINIBLOCK; mini++) {
            const uint64_t *step = steps + mini * MINIBLOCK;
            uint64_t any = 0, word = 0;
            int filled = 0;
            for (int i = 0; i < MINIBLOCK; i++) any |= step[i];
            const int width = any ? 64 - __builtin_clzll(any) : 0;
            widths[mini] = (uint8_t)width;
            if (mini * MINIBLOCK >= left || width == 0) continue;
            for (int i = 0; i < MINIBLOCK; i++) { /* 32 values of any width fill whole bytes */
                word |= step[i] << filled;
                filled += width;
                if (filled >= 64) {
                    for (int b = 0; b < 8; b++) *out++ = (uint8_t)(word >> (8 * b));
                    filled -= 64;
                    word = filled ? step[i] >> (width - filled) : 0;
                }
            }
            for (; filled > 0; filled -= 8, word >>= 8) *out++ = (uint8_t)word;
        }
    }
    return out - begin;
}

/* Numbers the different ones among n values in [0, width), in their order. `numbers` has `width` zeros and becomes value
 * to number, met[i] is the value with number i, and codes[i] the number of values[i]: bytes where at most 256 values were
 * met, else 16 bits. Returns how many were met, -1 where they are more than 65,536
 * or a value is beyond the width. */
int64_t jobwatt_number_values(const int32_t *values, int64_t n, int32_t width, uint16_t *numbers, int32_t *met,
                              void *codes) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        if ((uint32_t)values[i] >= (uint32_t)width) return -1;
        numbers[values[i]] = 1;
    }
    for (int32_t v = 0; v < width; v++) {
        if (!numbers[v]) continue;
        if (count > UINT16_MAX) return -1;
        met[count] = v;
        numbers[v] = (uint16_t)count++;
    }
    if (count <= 256) for (int64_t i = 0; i < n; i++) ((uint8_t *)codes)[i] = (uint8_t)numbers[values[i]];
    else for (int64_t i = 0; i < n; i++) ((uint16_t *)codes)[i] = numbers[values[i]];
    return count;
}

/* Writes n values as whole hundredths; returns whether each is exactly the number nearest to such, at least 0 and under
 * `most`. */
int64_t jobwatt_hundredths(const float *values, int64_t n, float most, int32_t *out) {
    int wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        const float v = values[i];
        const int fits = (v >= 0) & (v < most);
        const int32_t whole = (int32_t)((double)(fits ? v : 0) * 100 + 0.5);
        wrong |= !fits | ((float)(whole / 100.0) != v);
        out[i] = whole;
    }
    return !wrong;
}

/* Counts newlines in text[0..n), in stretches whose counts fit a byte, which is what compilers make fast code of. */
int64_t jobwatt_count_newlines(const char *text, int64_t n) {
    int64_t count = 0, at = 0;
    for (; at + 4096 <= n; at += 4096) {
        uint8_t counts[32] = {0};
        for (int64_t i = 0; i < 4096; i += 32)
            for (int64_t j = 0; j < 32; j++) counts[j] = (uint8_t)(counts[j] + (text[at + i + j] == '\n'));
        for (int64_t j = 0; j < 32; j++) count += counts[j];
    }
    for (; at < n; at++) count += text[at] == '\n';
    return count;
}

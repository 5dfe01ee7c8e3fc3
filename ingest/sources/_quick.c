/* Parses clean numeric CSV into typed columns, several times as fast as a general reader.
 *
 * Strict on purpose: a line with another number of fields, a blank or quoted field, a sign or exponent where none is due,
 * a value outside its limits: the first of these ends the call, and the caller reads that piece of text with care.
 * Nothing is allocated but one locale, nothing outside the given buffers is touched.
 */
#define _GNU_SOURCE /* strtod_l */
#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

/* The digits at p, at most eight of them, taken at once; returns how many there are. Eight bytes must be readable. */
static inline int lead(const char *p, int64_t *value) {
    uint64_t w, t;
    memcpy(&w, p, 8);
    t = ((w & 0xF0F0F0F0F0F0F0F0ULL) ^ 0x3030303030303030ULL) |
        (((w + 0x0606060606060606ULL) & 0xF0F0F0F0F0F0F0F0ULL) ^ 0x3030303030303030ULL);
    int n = t ? __builtin_ctzll(t) >> 3 : 8;
    if (n == 0) return 0;
    w <<= 8 * (8 - n);
    w = (w & 0x0F0F0F0F0F0F0F0FULL) * 2561 >> 8;
    w = (w & 0x00FF00FF00FF00FFULL) * 6553601 >> 16;
    w = (w & 0x0000FFFF0000FFFFULL) * 42949672960001ULL >> 32;
    *value = (int64_t)w;
    return n;
}

/* An unsigned decimal number with at most MAX_DIGITS digits in all; returns its end, NULL where there is none. */
static const char *number_slow(const char *p, const char *end, int64_t *mantissa, int *decimals, int *digits) {
    int64_t m = 0;
    int n = 0, k = 0;
    unsigned d;
    while (p < end && (d = (unsigned)(*p - '0')) < 10u) { m = m * 10 + d; p++; if (++n > MAX_DIGITS) return NULL; }
    if (n == 0) return NULL;
    if (p < end && *p == '.') {
        p++;
        while (p < end && (d = (unsigned)(*p - '0')) < 10u) { m = m * 10 + d; p++; k++; if (++n > MAX_DIGITS) return NULL; }
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

/* What the last row held in one field, so that a field that repeats it costs one comparison. */
typedef struct {
    uint64_t text, mask; /* its first bytes with the separator, where they are at most eight; mask 0 matches nothing */
    int64_t low, high;   /* limits of a whole number */
    int32_t length;      /* with the separator */
} Last;

#define MAX_FIELDS 64
#define DOUBT return -1 - row

static inline uint64_t load(const char *p) {
    uint64_t w;
    memcpy(&w, p, 8);
    return w;
}

static inline void repeat(void *out, int32_t kind, int64_t row) {
    switch (kind) {
        case U8: ((uint8_t *)out)[row] = ((uint8_t *)out)[row - 1]; break;
        case I16: case U16: ((uint16_t *)out)[row] = ((uint16_t *)out)[row - 1]; break;
        case U32: case F32: case WORD: ((uint32_t *)out)[row] = ((uint32_t *)out)[row - 1]; break;
        default: ((uint64_t *)out)[row] = ((uint64_t *)out)[row - 1]; break;
    }
}

static inline void remember(Last *last, const char *begin, const char *after, const char *end) {
    int64_t n = after - begin;
    last->mask = 0;
    if (LITTLE_ENDIAN_HOST && n <= 8 && end - begin >= 8) {
        last->mask = n == 8 ? ~0ULL : (1ULL << (8 * n)) - 1;
        last->text = load(begin) & last->mask;
        last->length = (int32_t)n;
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

/* Parses lines of `width` fields from buf[0..len) into outs[], from row `row` on. The text must end with a newline.
 * Returns the row after the last one, or -1 - row for the row of the first doubtful line. */
int64_t jobwatt_parse(const char *buf, int64_t len, int32_t width, const int32_t *kinds, const double *lows,
                      const double *highs, void *const *outs, int64_t row, int64_t capacity, Words *words) {
    const char *p = buf, *end = buf + len;
    Last lasts[MAX_FIELDS];
    if (width > MAX_FIELDS) DOUBT;
    for (int32_t c = 0; c < width; c++)
        lasts[c] = (Last){.low = clamp(ceil(lows[c])), .high = clamp(floor(highs[c]))};
    while (p < end) {
        if (row >= capacity) DOUBT;
        for (int32_t c = 0; c < width; c++) {
            const int32_t kind = kinds[c];
            const char *begin = p;
            Last *last = &lasts[c];
            if (last->mask && end - p >= 8 && (load(p) & last->mask) == last->text) {
                if (kind != SKIP) repeat(outs[c], kind, row);
                p += last->length;
                continue;
            }
            if (kind == SKIP || kind == WORD) {
                while (p < end && *p != ',' && *p != '\n' && *p != '"' && (unsigned char)*p < 0x80) p++;
                if (p >= end || *p == '"' || (unsigned char)*p >= 0x80) DOUBT;
                if (kind == WORD) {
                    const char *stop = p;
                    if (stop > begin && stop[-1] == '\r') stop--;
                    if (stop == begin || *begin == ' ' || stop[-1] == ' ') DOUBT;
                    int32_t code = word(words, begin, stop - begin);
                    if (code < 0) DOUBT;
                    ((int32_t *)outs[c])[row] = code;
                }
            } else {
                const int negative = *p == '-';
                int64_t m;
                int k, n;
                p = number(p + negative, end, &m, &k, &n);
                if (p == NULL) DOUBT;
                if (kind < F32) {
                    if (negative) m = -m;
                    if (k || m < last->low || m > last->high) DOUBT;
                    switch (kind) {
                        case U8: if (m < 0 || m > UINT8_MAX) DOUBT; ((uint8_t *)outs[c])[row] = (uint8_t)m; break;
                        case I16: if (m < INT16_MIN || m > INT16_MAX) DOUBT; ((int16_t *)outs[c])[row] = (int16_t)m; break;
                        case U16: if (m < 0 || m > UINT16_MAX) DOUBT; ((uint16_t *)outs[c])[row] = (uint16_t)m; break;
                        case U32: if (m < 0 || m > UINT32_MAX) DOUBT; ((uint32_t *)outs[c])[row] = (uint32_t)m; break;
                        default: ((int64_t *)outs[c])[row] = m; break;
                    }
                } else {
                    double value = k ? (double)m / POWERS_OF_TEN[k] : (double)m;
                    if (negative) { value = -value; m = -m; }
                    if (!(value >= lows[c] && value <= highs[c])) DOUBT;
                    if (kind == TIME_US) {
                        if (k <= 6) ((int64_t *)outs[c])[row] = m * MICROS[k];
                        else if (!micros(begin, &((int64_t *)outs[c])[row])) DOUBT;
                    } else {
                        if (n > 15) DOUBT;
                        if (kind == F32) ((float *)outs[c])[row] = (float)value;
                        else ((double *)outs[c])[row] = value;
                    }
                }
            }
            if (c == width - 1) {
                if (p < end && *p == '\r') p++;
                if (p >= end || *p != '\n') DOUBT;
            } else if (p >= end || *p != ',') DOUBT;
            p++;
            if (kind != TIME_US) remember(last, begin, p, end);
        }
        row++;
    }
    return row;
}

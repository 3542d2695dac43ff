/* What is the same for all results; read once, since stores of bytes could change the parameters. */
typedef struct {
    v16f zero;
    v64b lo, hi;
} depthwise_end;

/* Requantize 64 sums, which are in the order of load_taps, and store the first `bytes` of them. */
INLINE void depthwise_results(const depthwise_params *p, const depthwise_end *end, v16i *acc, int32_t index, uint8_t *y,
                              int32_t bytes)
{
    v16f found[4];

#ifdef FIXED_POINT
    if (p->mantissa != NULL)
        for (int32_t k = 0; k < 4; k++) {
            const int32_t first = 64 * index + 16 * k;

            found[k] = mul_add(to_f(fixed_16(acc[k], p->mantissa + first, p->exponent + first)), set_f(1.0f), end->zero);
        }
    else
#endif
    UNROLL
    for (int32_t k = 0; k < 4; k++)
        found[k] = mul_add(to_f(acc[k]), load_f(p->scale + 64 * index + 16 * k, 16), end->zero);
    store_first(y, clamp_64(round_taps(found[0], found[1], found[2], found[3]), end->lo, end->hi), bytes);
}

#ifndef STEP_ROWS
#define STEP_ROWS 1
#endif

/* A block of 64 bytes of `rows` rows, from the top. Windows that move by one row use taps again that are loaded already. If
 * the loop goes on by three rows, a row's taps stay in their place. */
INLINE void depthwise_column(const depthwise_params *p, const uint8_t *x, int32_t index, uint8_t *y, int32_t rows,
                             int32_t bytes, int32_t height, int32_t fours)
{
    const int8_t *w = p->weight + index * height * fours * 256;
    const int32_t *const bias = p->bias + 64 * index;
    const depthwise_end end = {set_f(p->zero), set_64(p->lo), set_64(p->hi)};
    v16i acc[4];
    taps seen[3];

    if (height == 3 && fours == 1 && p->row_step == p->tap_row) {
        seen[0] = load_taps(x, p->tap_step);
        seen[1] = load_taps(x + p->tap_row, p->tap_step);
        x += 2 * p->tap_row;
        for (int32_t top = 0; top < rows; top += STEP_ROWS)
            UNROLL
            for (int32_t i = 0; i < STEP_ROWS; i++) {
                if (top + i >= rows)
                    return;
                if (STEP_ROWS == 1 && top > 0) {
                    seen[0] = seen[1];
                    seen[1] = seen[2];
                }
                UNROLL
                for (int32_t k = 0; k < 4; k++)
                    acc[k] = load_i(bias + 16 * k);
                seen[(i + 2) % 3] = load_taps(x, p->tap_step);
                UNROLL
                for (int32_t t = 0; t < 12; t++)
                    acc[t % 4] = dot_lanes(acc[t % 4], seen[(i + t / 4) % 3].at[t % 4], load_weights(w + t * 64));
                depthwise_results(p, &end, acc, index, y, bytes);
                x += p->row_step;
                y += p->out_row;
            }
        return;
    }
    for (int32_t i = 0; i < rows; i++, x += p->row_step, y += p->out_row) {
        UNROLL
        for (int32_t k = 0; k < 4; k++)
            acc[k] = load_i(bias + 16 * k);
        for (int32_t t = 0; t < height * fours; t++) {
            const taps four = load_taps(x + t / fours * p->tap_row + t % fours * 4 * p->tap_step, p->tap_step);

            UNROLL
            for (int32_t k = 0; k < 4; k++)
                acc[k] = dot_lanes(acc[k], four.at[k], load_weights(w + (4 * t + k) * 64));
        }
        depthwise_results(p, &end, acc, index, y, bytes);
    }
}

#undef STEP_ROWS

INLINE void depthwise_images(const depthwise_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part,
                             int32_t height, int32_t fours)
{
    const int32_t first = start_of(p->out_h, part), rows = start_of(p->out_h, next(part)) - first;

    x += first * p->row_step;
    y += first * p->out_row;
    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES)
        for (int32_t top = 0; top < rows; top += STRIP_ROWS) {
            const uint8_t *from = x + top * p->row_step;
            uint8_t *to = y + top * p->out_row;
            const int32_t strip = rows - top < STRIP_ROWS ? rows - top : STRIP_ROWS;

            for (int32_t run = 0; run < p->runs; run++, from += p->run_step, to += p->run_bytes)
                for (int32_t at = 0, index = 0; at < p->run_bytes; at += 64, index = index + 1 < p->period ? index + 1 : 0)
                    depthwise_column(p, from + at, index, to + at, strip, p->run_bytes - at, height, fours);
        }
}

/* A kernel for one number of rows of taps, and of groups of four taps in a row. */
#define DEPTHWISE(name, height, fours) \
    KERNEL void name(const depthwise_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part) \
    { \
        depthwise_images(p, x, y, count, part, height, fours); \
    }

#ifdef UNSIGNED_ACTIVATIONS
#define BIAS bias
#else
#define BIAS signed_bias /* for activations less 128 */
#endif

typedef struct {
    activations at[4];
} taps; /* four taps of 16 channels: four channels in each */

INLINE taps load_taps(const uint8_t *from, int32_t step)
{
    const interleaved bytes = interleave(from, step);
    taps t;

    EACH t.at[i] = activations_of(bytes.at[i]);
    return t;
}

/* What is the same for all results; read once, since stores of bytes could change the parameters. */
typedef struct {
    v16f zero;
    v16b lo, hi;
} depthwise_end;

/* Requantize the sums of 16 channels and store the first `bytes` of them. Factors of four channels are 16 apart. */
INLINE void depthwise_results(const depthwise_params *p, const depthwise_end *end, v16i acc, int32_t first, uint8_t *y,
                              int32_t bytes)
{
    v16f scale;

#ifdef FIXED_POINT
    if (p->mantissa != NULL) {
        int32_t mantissa[16], exponent[16];

        EACH memcpy(mantissa + 4 * i, p->mantissa + first + 16 * i, 16);
        EACH memcpy(exponent + 4 * i, p->exponent + first + 16 * i, 16);
        acc = fixed_16(acc, mantissa, exponent);
        scale = set_f(1.0f);
    } else
#endif
    EACH scale.at[i] = four_f(p->scale + first + 16 * i);
    store_b(y, clamp_b(rounded_bytes(mul_add(to_f(acc), scale, end->zero)), end->lo, end->hi), bytes);
}

/* Sixteen bytes of `rows` rows, from the top: part `i` of a block of 64. Windows that move by one row use taps again that are
 * loaded already: a row's taps stay in their place, which the next two rows know, since three rows are one step. */
INLINE void depthwise_column(const depthwise_params *p, const uint8_t *x, int32_t index, int32_t part, uint8_t *y,
                             int32_t rows, int32_t bytes, int32_t height, int32_t fours)
{
    const int8_t *w = p->weight + index * height * fours * 256 + 16 * part;
    const int32_t first = 64 * index + 4 * part; /* numbers are in the order of 64 bytes unpacked at once */
    const depthwise_end end = {set_f(p->zero), set_b(p->lo), set_b(p->hi)};
    v16i acc;
    taps seen[3];

    if (height == 3 && fours == 1 && p->row_step == p->tap_row) {
        seen[0] = load_taps(x, p->tap_step);
        seen[1] = load_taps(x + p->tap_row, p->tap_step);
        x += 2 * p->tap_row;
        for (int32_t top = 0; top < rows; top += 3)
            UNROLL
            for (int32_t row = 0; row < 3; row++) {
                if (top + row >= rows)
                    return;
                seen[(row + 2) % 3] = load_taps(x, p->tap_step);
                EACH acc.at[i] = four_i(p->BIAS + first + 16 * i);
                EACH
                {
                    UNROLL
                    for (int32_t t = 0; t < 3; t++)
                        acc.at[i] = add_taps(acc.at[i], seen[(row + t) % 3].at[i], tap_weights(w + (4 * t + i) * 64));
                }
                depthwise_results(p, &end, acc, first, y, bytes);
                x += p->row_step;
                y += p->out_row;
            }
        return;
    }
    for (int32_t row = 0; row < rows; row++, x += p->row_step, y += p->out_row) {
        EACH acc.at[i] = four_i(p->BIAS + first + 16 * i);
        for (int32_t t = 0; t < height * fours; t++) {
            const taps four = load_taps(x + t / fours * p->tap_row + t % fours * 4 * p->tap_step, p->tap_step);

            EACH acc.at[i] = add_taps(acc.at[i], four.at[i], tap_weights(w + (4 * t + i) * 64));
        }
        depthwise_results(p, &end, acc, first, y, bytes);
    }
}

#undef BIAS

INLINE void depthwise_images(const depthwise_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part,
                             int32_t height, int32_t fours)
{
    const int32_t first = start_of(p->out_h, part), rows = start_of(p->out_h, next(part)) - first;

    x += first * p->row_step;
    y += first * p->out_row;
    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES) {
        const uint8_t *from = x;
        uint8_t *to = y;

        for (int32_t run = 0; run < p->runs; run++, from += p->run_step, to += p->run_bytes)
            for (int32_t at = 0, index = 0; at < p->run_bytes; at += 16) {
                depthwise_column(p, from + at, index, at / 16 % 4, to + at, rows, p->run_bytes - at, height, fours);
                if (at % 64 == 48)
                    index = index + 1 < p->period ? index + 1 : 0;
            }
    }
}

/* A kernel for one number of rows of taps, and of groups of four taps in a row. */
#define DEPTHWISE(name, height, fours) \
    KERNEL void name(const depthwise_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part) \
    { \
        depthwise_images(p, x, y, count, part, height, fours); \
    }

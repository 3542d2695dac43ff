/* What convolutions with the DSP extension share, equations (2) and (3); with a residual (2) and (7b). */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h;
    int32_t pad_top, pad_left;
    int32_t in_zero;
    int32_t words, part;   /* of a window, with zeros at the end; the largest number to take at once: multiples of 8 */
    const int32_t *weight; /* [out_c / 2, rounded up][words] */
    const int32_t *bias;   /* [out_c, even], without in_zero times the sum of the channel's weights */
    int32_t residual_zero, residual_multiplier;
    int32_t clamp_bits; /* 0, or HALVES_BITS: sums may be clamped to this many bits */
    requantization to;
} conv2d_halves_params;

/* Write the sums of `pixels` windows and `channels` channels, with biases. A residual, if any, is at the same index. */
static IN_REGISTERS void halves_store(const conv2d_halves_params *p, uint8_t *y, const uint8_t *joins, int32_t channel, int32_t pixels,
                         int32_t channels, const int32_t sums[8])
{
    for (int32_t j = 0; j < channels; j++) {
        for (int32_t i = 0; i < pixels; i++) {
            const int32_t acc = sums[2 * i + j], index = i * p->out_c + j;

            if (p->to.multiplier == NULL) {
                memcpy(y + 4 * index, &acc, 4);
                continue;
            }
#ifdef FIXED_POINT
            if (p->to.exponent != NULL) {
                y[index] = requantize_fixed(&p->to, acc, channel + j);
                continue;
            }
#endif
            y[index] = requantize(&p->to, (int64_t)acc * multiplier_of(&p->to, channel + j) +
                                              (joins == NULL ? 0 : (int64_t)(joins[index] - p->residual_zero) *
                                                                       p->residual_multiplier));
        }
    }
}

/* The same for two channels of a layer whose sums may be clamped to HALVES_BITS: larger ones give lo or hi in any case, and
 * products of those that are left fit 32 bits. The shift is a constant where this is inlined. */
static INLINED void halves_store_clamped(const conv2d_halves_params *p, uint8_t *y, const uint8_t *joins, int32_t channel,
                                         const int32_t *sums, int32_t count, int32_t shift)
{
    const int32_t m0 = multiplier_of(&p->to, channel), m1 = multiplier_of(&p->to, channel + 1);
    const int32_t residual = p->residual_multiplier, shared = -residual * p->residual_zero, apart = p->out_c;
    const int32_t zero_and_half = p->to.zero * ((int32_t)1 << shift) + (((int32_t)1 << (shift - 1)) - 1);
    const int32_t *const end = sums + count;
    uint8_t *const first = y;

    if (joins == NULL) {
        do {
            const int32_t of_left = sums[0], of_right = sums[1];
            int32_t left = clamped(of_left, HALVES_BITS) * m0, right = clamped(of_right, HALVES_BITS) * m1;

            HALVES_ROUND(left, shift)
            HALVES_ROUND(right, shift)
            y[0] = (uint8_t)left;
            y[1] = (uint8_t)right;
            sums += 2;
            y += apart;
        } while (sums != end);
    } else {
        do {
            const int32_t of_left = sums[0], of_right = sums[1];
            int32_t left = clamped(of_left, HALVES_BITS) * m0 + shared + joins[0] * residual;
            int32_t right = clamped(of_right, HALVES_BITS) * m1 + shared + joins[1] * residual;

            HALVES_ROUND(left, shift)
            HALVES_ROUND(right, shift)
            y[0] = (uint8_t)left;
            y[1] = (uint8_t)right;
            sums += 2;
            y += apart;
            joins += apart;
        } while (sums != end);
    }
    if (p->to.hi - p->to.lo < 255) {
        for (int32_t i = 0; i < count; i++) {
            uint8_t *const q = first + (i >> 1) * apart + (i & 1);

            *q = (uint8_t)(*q < p->to.lo ? p->to.lo : *q > p->to.hi ? p->to.hi : *q);
        }
    }
}

static IN_REGISTERS void halves_store_16(const conv2d_halves_params *p, uint8_t *y, const uint8_t *joins, int32_t channel,
                                         const int32_t *sums, int32_t count)
{
    halves_store_clamped(p, y, joins, channel, sums, count, 16);
}

static IN_REGISTERS void halves_store_14(const conv2d_halves_params *p, uint8_t *y, const uint8_t *joins, int32_t channel,
                                         const int32_t *sums, int32_t count)
{
    halves_store_clamped(p, y, joins, channel, sums, count, 14);
}

/* The same for either shift of such layers. */
static INLINED void halves_store_two(const conv2d_halves_params *p, uint8_t *y, const uint8_t *joins, int32_t channel,
                                     const int32_t *sums, int32_t count)
{
    if (p->to.shift == 16)
        halves_store_16(p, y, joins, channel, sums, count);
    else
        halves_store_14(p, y, joins, channel, sums, count);
}

/* A row of windows that begins `left` pixels from the input's and is `width` pixels wide: in the input, or else copied, with
 * pixels beyond the edges at the zero point. */
static const uint8_t *row_with_edges(const conv2d_halves_params *p, const uint8_t *row, int32_t left, int32_t width,
                                     uint8_t *copy)
{
    const int32_t before = left < 0 ? (-left < width ? -left : width) : 0;
    const int32_t beyond = left + width - p->in_w, after = beyond > 0 ? (beyond < width ? beyond : width) : 0;

    if (before + after == 0)
        return row + left * p->in_c;
    memset(copy, p->in_zero, (size_t)(before * p->in_c));
    if (before + after < width)
        memcpy(copy + before * p->in_c, row + (left + before) * p->in_c, (size_t)((width - before - after) * p->in_c));
    memset(copy + (width - after) * p->in_c, p->in_zero, (size_t)(after * p->in_c));
    return copy;
}

/* Tiles of a convolution with Helium: four windows and all channels, two at a time. Their outputs are `apart` bytes apart, and
 * a residual, if any, has the same form. */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t pad_top, pad_left;
    int32_t in_zero;
    int32_t sixteens;     /* in a window */
    int32_t columns;      /* of a row that is kept with 16 channels of each column together; 0: windows are copied */
    int32_t row_bytes;    /* of a kept row */
    const int8_t *weight; /* [out_c / 2, rounded up][sixteens][2][16] */
    const int32_t *channels; /* [out_c / 2, rounded up][2][2]: biases of two channels, for activations that are less by 128,
                              * and multipliers in units of 2^-16 if in_halves */
    int32_t residual_zero, residual_multiplier;
    int32_t in_halves;  /* 1: products of multipliers and sums fit 32 bits */
    int32_t clamp_bits; /* of these sums; larger ones give lo or hi in any case. 0: all fit */
    requantization to;
} conv2d_helium_params;

/* Write the sums of two channels of four windows, sums[4 * channel + window]. */
static WITH_HELIUM void helium_store(const conv2d_helium_params *p, uint8_t *y, const uint8_t *joins, int32_t apart,
                                     int32_t channel, const int32_t sums[8])
{
    for (int32_t i = 0; i < 8; i++) {
        const int32_t at = channel + (i >> 2), place = (i & 3) * apart + at;

        if (p->to.multiplier == NULL) {
            memcpy(y + (i & 3) * apart + 4 * at, sums + i, 4);
            continue;
        }
        if (at >= p->out_c) {
            y[place] = 0;
            continue;
        }
#ifdef FIXED_POINT
        if (p->to.exponent != NULL) {
            y[place] = requantize_fixed(&p->to, sums[i], at);
            continue;
        }
#endif
        y[place] = requantize(&p->to, (int64_t)sums[i] * (p->in_halves ? p->channels[2 * channel + 2 + (i >> 2)]
                                                                      : multiplier_of(&p->to, at)) +
                                          (joins == NULL ? 0 : (int64_t)(joins[place] - p->residual_zero) *
                                                                   p->residual_multiplier));
    }
}

#if HAVE_HELIUM
typedef union {
    int32_t each[8];
    int32x4_t fours[2];
} helium_sums;

/* The same for layers in halves, with the places of the eight outputs. */
static INLINED void helium_store_halves(const conv2d_helium_params *p, uint8_t *y, const uint8_t *joins, uint16x8_t places,
                                        const int32_t *multiplier, int32_t clamps, const helium_sums *sums)
{
    int32x4_t a = sums->fours[0], b = sums->fours[1];
    int16x8_t value;

    if (clamps && p->clamp_bits > 0) {
        const int32_t limit = (int32_t)1 << (p->clamp_bits - 1);
        const int32x4_t lowest = vdupq_n_s32(-limit), highest = vdupq_n_s32(limit - 1);

        a = vminq_s32(vmaxq_s32(a, lowest), highest);
        b = vminq_s32(vmaxq_s32(b, lowest), highest);
    }
    a = vmulq_n_s32(a, multiplier[0]);
    b = vmulq_n_s32(b, multiplier[1]);
    if (joins != NULL) {
        const int16x8_t joined = vreinterpretq_s16_u16(
            vsubq_n_u16(vldrbq_gather_offset_u16(joins, places), (uint16_t)p->residual_zero));

        a = vmlaq_n_s32(a, vmovlbq_s16(joined), p->residual_multiplier);
        b = vmlaq_n_s32(b, vmovltq_s16(joined), p->residual_multiplier);
    }
    value = helium_rounded(a, b, p->to.zero);
    if (clamps)
        value = vminq_s16(vmaxq_s16(value, vdupq_n_s16((int16_t)p->to.lo)), vdupq_n_s16((int16_t)p->to.hi));
    vstrbq_scatter_offset_u16(y, places, vreinterpretq_u16_u8(vqmovunbq_s16(vreinterpretq_u8_s16(value), value)));
}

/* For all channels; sums begin with biases: a of the first channel, b of the second. */
#define HELIUM_FOR_CHANNELS \
    const uint16x8_t lanes = vidupq_n_u16(0, 1); \
    const uint16x8_t outputs = \
        vmlaq_n_u16(vandq_u16(lanes, vdupq_n_u16(1)), vshrq_n_u16(lanes, 1), (uint16_t)apart); \
    const int32_t clamps = p->clamp_bits > 0 || p->to.hi - p->to.lo < 255; \
    const int32_t *const all = p->channels + 2 * p->out_c; \
    const int8_t *w = p->weight; \
\
    for (const int32_t *channel = p->channels; channel < all; channel += 4) { \
        int32_t a0 = channel[0], a1 = a0, a2 = a0, a3 = a0, b0 = channel[1], b1 = b0, b2 = b0, b3 = b0; \
        helium_sums sums;

#define HELIUM_STORE \
        helium_store_halves(p, y, joins, outputs, channel + 2, clamps, &sums); \
        y += 2; \
        if (joins != NULL) \
            joins += 2;

#define HELIUM_SUMS \
        sums.each[0] = a0; \
        sums.each[1] = a1; \
        sums.each[2] = a2; \
        sums.each[3] = a3; \
        sums.each[4] = b0; \
        sums.each[5] = b1; \
        sums.each[6] = b2; \
        sums.each[7] = b3;

#define HELIUM_LOAD(place) bytes = vldrbq_s8(x + 16 * (place));
#define HELIUM_ADD(window, tap) \
    a##window = vmladavaq_s8(a##window, u##tap, bytes); \
    b##window = vmladavaq_s8(b##window, v##tap, bytes);

#define HELIUM_ADD_WINDOWS \
        const int8_t *x = windows, *const end = windows + 64 * p->sixteens; \
\
        do { \
            const int8x16_t u0 = vldrbq_s8(w), v0 = vldrbq_s8(w + 16); \
            int8x16_t bytes; \
\
            HELIUM_LOAD(0) HELIUM_ADD(0, 0) \
            HELIUM_LOAD(1) HELIUM_ADD(1, 0) \
            HELIUM_LOAD(2) HELIUM_ADD(2, 0) \
            HELIUM_LOAD(3) HELIUM_ADD(3, 0) \
            x += 64; \
            w += 32; \
        } while (x != end);

/* Windows that were copied: 16 bytes of each in turn. */
static WITH_HELIUM void helium_windows(const conv2d_helium_params *p, const int8_t *windows, uint8_t *y, const uint8_t *joins,
                                       int32_t apart)
{
    HELIUM_FOR_CHANNELS
        HELIUM_ADD_WINDOWS
        HELIUM_SUMS
        HELIUM_STORE
    }
}

/* The same for layers that are not in halves. */
static WITH_HELIUM void helium_other_windows(const conv2d_helium_params *p, const int8_t *windows, uint8_t *y,
                                             const uint8_t *joins, int32_t apart)
{
    const int8_t *w = p->weight;

    for (int32_t channel = 0; channel < p->out_c; channel += 2) {
        const int32_t *const bias = p->channels + 2 * channel;
        int32_t a0 = bias[0], a1 = a0, a2 = a0, a3 = a0, b0 = bias[1], b1 = b0, b2 = b0, b3 = b0;
        helium_sums sums;

        HELIUM_ADD_WINDOWS
        HELIUM_SUMS
        helium_store(p, y, joins, apart, channel, sums.each);
    }
}

#define HELIUM_THREE_TAPS \
    const int8_t *const x = *at++; \
    const int8x16_t u0 = vldrbq_s8(w), v0 = vldrbq_s8(w + 16), u1 = vldrbq_s8(w + 32), v1 = vldrbq_s8(w + 48); \
    const int8x16_t u2 = vldrbq_s8(w + 64), v2 = vldrbq_s8(w + 80); \
    int8x16_t bytes;

/* Windows of three columns, each of which is read once for all windows that contain it. */
static WITH_HELIUM void helium_columns(const conv2d_helium_params *p, const int8_t *const *places, int32_t count, uint8_t *y,
                                       const uint8_t *joins, int32_t apart)
{
    HELIUM_FOR_CHANNELS
        const int8_t *const *at = places, *const *const end = places + count;

        do {
            HELIUM_THREE_TAPS

            HELIUM_LOAD(0) HELIUM_ADD(0, 0)
            HELIUM_LOAD(1) HELIUM_ADD(0, 1) HELIUM_ADD(1, 0)
            HELIUM_LOAD(2) HELIUM_ADD(0, 2) HELIUM_ADD(1, 1) HELIUM_ADD(2, 0)
            HELIUM_LOAD(3) HELIUM_ADD(1, 2) HELIUM_ADD(2, 1) HELIUM_ADD(3, 0)
            HELIUM_LOAD(4) HELIUM_ADD(2, 2) HELIUM_ADD(3, 1)
            HELIUM_LOAD(5) HELIUM_ADD(3, 2)
            w += 96;
        } while (at != end);
        HELIUM_SUMS
        HELIUM_STORE
    }
}

/* The same with windows two columns apart. */
static WITH_HELIUM void helium_columns_apart(const conv2d_helium_params *p, const int8_t *const *places, int32_t count,
                                             uint8_t *y, const uint8_t *joins, int32_t apart)
{
    HELIUM_FOR_CHANNELS
        const int8_t *const *at = places, *const *const end = places + count;

        do {
            HELIUM_THREE_TAPS

            HELIUM_LOAD(0) HELIUM_ADD(0, 0)
            HELIUM_LOAD(1) HELIUM_ADD(0, 1)
            HELIUM_LOAD(2) HELIUM_ADD(0, 2) HELIUM_ADD(1, 0)
            HELIUM_LOAD(3) HELIUM_ADD(1, 1)
            HELIUM_LOAD(4) HELIUM_ADD(1, 2) HELIUM_ADD(2, 0)
            HELIUM_LOAD(5) HELIUM_ADD(2, 1)
            HELIUM_LOAD(6) HELIUM_ADD(2, 2) HELIUM_ADD(3, 0)
            HELIUM_LOAD(7) HELIUM_ADD(3, 1)
            HELIUM_LOAD(8) HELIUM_ADD(3, 2)
            w += 96;
        } while (at != end);
        HELIUM_SUMS
        HELIUM_STORE
    }
}
#else
/* The sums of taps that are at places[k] + 16 * (tap + step * window), for each k below count. */
static void helium_taps(const conv2d_helium_params *p, const int8_t *const *places, int32_t count, int32_t taps, int32_t step,
                        uint8_t *y, const uint8_t *joins, int32_t apart)
{
    const int8_t *w = p->weight;

    for (int32_t channel = 0; channel < p->out_c; channel += 2) {
        int32_t sums[8];

        for (int32_t i = 0; i < 8; i++)
            sums[i] = p->channels[2 * channel + (i >> 2)];
        for (int32_t k = 0; k < count; k++) {
            for (int32_t tap = 0; tap < taps; tap++, w += 32) {
                for (int32_t i = 0; i < 128; i++) {
                    const int8_t *const x = taps == 1 ? places[0] + 64 * k : places[k];

                    sums[i >> 4] += w[16 * (i >> 6) + (i & 15)] * x[16 * ((i >> 4 & 3) * step + tap) + (i & 15)];
                }
            }
        }
        helium_store(p, y, joins, apart, channel, sums);
    }
}

static void helium_windows(const conv2d_helium_params *p, const int8_t *windows, uint8_t *y, const uint8_t *joins, int32_t apart)
{
    helium_taps(p, &windows, p->sixteens, 1, 1, y, joins, apart);
}

#define helium_other_windows helium_windows

static void helium_columns(const conv2d_helium_params *p, const int8_t *const *places, int32_t count, uint8_t *y,
                           const uint8_t *joins, int32_t apart)
{
    helium_taps(p, places, count, 3, 1, y, joins, apart);
}

static void helium_columns_apart(const conv2d_helium_params *p, const int8_t *const *places, int32_t count, uint8_t *y,
                                 const uint8_t *joins, int32_t apart)
{
    helium_taps(p, places, count, 3, 2, y, joins, apart);
}
#endif

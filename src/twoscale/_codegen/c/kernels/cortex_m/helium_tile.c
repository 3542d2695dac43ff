/* Sums of a convolution with Helium: tiles of four windows and all channels, two at a time. */
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
    const int32_t *weight; /* [out_c / 2, rounded up][sixteens][2][4], four bytes each, the first the lowest */
    const int32_t *channels; /* [out_c / 2, rounded up][2][2]: biases of two channels, for activations that are less by 128,
                              * and multipliers in units of 2^-16 if in_halves */
    int32_t residual_zero, residual_multiplier;
    int32_t in_halves;  /* 1: products of multipliers and sums fit 32 bits */
    int32_t clamp_bits; /* of these sums; larger ones give lo or hi in any case. 0: all fit */
    requantization to;
} conv2d_helium_params;

/* Words of all weights. */
static inline int32_t helium_weights(const conv2d_helium_params *p)
{
    return 4 * p->sixteens * (p->out_c + (p->out_c & 1));
}

#if HAVE_HELIUM
#define HELIUM_SUMS_OF_PAIR int32_t a0, a1, a2, a3, b0, b1, b2, b3;
#define HELIUM_SET(window, tap) \
    a##window = vmladavq_s8(u##tap, bytes); \
    b##window = vmladavq_s8(v##tap, bytes);
#define HELIUM_ADD(window, tap) \
    a##window = vmladavaq_s8(a##window, u##tap, bytes); \
    b##window = vmladavaq_s8(b##window, v##tap, bytes);
#define HELIUM_WEIGHTS(place) vreinterpretq_s8_s32(vldrwq_s32(w + 4 * (place)))
#define HELIUM_LOAD(place) bytes = vldrbq_s8(x + 16 * (place));
#define HELIUM_KEEP_SUMS \
    sums[0] = a0; \
    sums[1] = a1; \
    sums[2] = a2; \
    sums[3] = a3; \
    sums[4] = b0; \
    sums[5] = b1; \
    sums[6] = b2; \
    sums[7] = b3; \
    sums += 8;

#define HELIUM_WINDOWS(DO) \
    { \
        const int8x16_t u0 = HELIUM_WEIGHTS(0), v0 = HELIUM_WEIGHTS(1); \
        int8x16_t bytes = vldrbq_s8(x - 2 * HELIUM_WINDOW); \
\
        DO(0, 0) \
        bytes = vldrbq_s8(x - HELIUM_WINDOW); \
        DO(1, 0) \
        bytes = vldrbq_s8(x); \
        DO(2, 0) \
        bytes = vldrbq_s8(x + HELIUM_WINDOW); \
        DO(3, 0) \
        x += 16; \
        w += 8; \
    }

/* The sums of a tile whose windows were copied, without biases: sums[pair of channels][channel][window]. */
static WITH_HELIUM void helium_windows(const int8_t *windows, const conv2d_helium_params *p, int32_t *sums)
{
    const int32_t *w = p->weight, *const last = w + helium_weights(p);
    const int8_t *const volatile first = windows + 2 * HELIUM_WINDOW; /* read for each pair, as there are few registers */
    const int32_t bytes_of_window = 16 * p->sixteens;

    do {
        const int8_t *x = first, *const end = x + bytes_of_window;
        HELIUM_SUMS_OF_PAIR

        HELIUM_WINDOWS(HELIUM_SET)
        while (x != end)
            HELIUM_WINDOWS(HELIUM_ADD)
        HELIUM_KEEP_SUMS
    } while (w != last);
}

/* Where a row of the windows begins, and the weights of its three columns. */
#define HELIUM_ROW_OF_WEIGHTS \
    const int8_t *const x = *at++; \
    const int8x16_t u0 = HELIUM_WEIGHTS(0), v0 = HELIUM_WEIGHTS(1), u1 = HELIUM_WEIGHTS(2), v1 = HELIUM_WEIGHTS(3); \
    const int8x16_t u2 = HELIUM_WEIGHTS(4), v2 = HELIUM_WEIGHTS(5); \
    int8x16_t bytes;

/* Three columns of one kernel row. */
#define HELIUM_COLUMNS(DO) \
    { \
        HELIUM_ROW_OF_WEIGHTS \
\
        HELIUM_LOAD(0) DO(0, 0) \
        HELIUM_LOAD(1) HELIUM_ADD(0, 1) DO(1, 0) \
        HELIUM_LOAD(2) HELIUM_ADD(0, 2) HELIUM_ADD(1, 1) DO(2, 0) \
        HELIUM_LOAD(3) HELIUM_ADD(1, 2) HELIUM_ADD(2, 1) DO(3, 0) \
        HELIUM_LOAD(4) HELIUM_ADD(2, 2) HELIUM_ADD(3, 1) \
        HELIUM_LOAD(5) HELIUM_ADD(3, 2) \
        w += 24; \
    }

/* The same with windows two columns apart. */
#define HELIUM_COLUMNS_APART(DO) \
    { \
        HELIUM_ROW_OF_WEIGHTS \
\
        HELIUM_LOAD(0) DO(0, 0) \
        HELIUM_LOAD(1) HELIUM_ADD(0, 1) \
        HELIUM_LOAD(2) HELIUM_ADD(0, 2) DO(1, 0) \
        HELIUM_LOAD(3) HELIUM_ADD(1, 1) \
        HELIUM_LOAD(4) HELIUM_ADD(1, 2) DO(2, 0) \
        HELIUM_LOAD(5) HELIUM_ADD(2, 1) \
        HELIUM_LOAD(6) HELIUM_ADD(2, 2) DO(3, 0) \
        HELIUM_LOAD(7) HELIUM_ADD(3, 1) \
        HELIUM_LOAD(8) HELIUM_ADD(3, 2) \
        w += 24; \
    }

/* The sums of tiles whose windows have three rows and three columns, each of which is read once for all windows that contain it:
 * sums[tile][pair of channels][channel][window], without biases. The places, three for 16 channels, move on. */
#define HELIUM_TILES(name, COLUMNS, stride) \
    static WITH_HELIUM void name(const conv2d_helium_params *p, const int8_t **places, int32_t tiles, int32_t *sums) \
    { \
        const int8_t **const end = places + 3 * (p->in_c >> 4); \
\
        do { \
            const int32_t *w = p->weight, *const last = w + helium_weights(p); \
\
            do { \
                const int8_t *const volatile *at = places; /* read in turn, since there are too few registers */ \
                HELIUM_SUMS_OF_PAIR \
\
                COLUMNS(HELIUM_SET) \
                COLUMNS(HELIUM_ADD) \
                COLUMNS(HELIUM_ADD) \
                while (at != end) { \
                    COLUMNS(HELIUM_ADD) \
                    COLUMNS(HELIUM_ADD) \
                    COLUMNS(HELIUM_ADD) \
                } \
                HELIUM_KEEP_SUMS \
            } while (w != last); \
            for (const int8_t **at = places; at != end; at++) \
                *at += 64 * (stride); \
        } while (--tiles > 0); \
    }

HELIUM_TILES(helium_columns, HELIUM_COLUMNS, 1)
HELIUM_TILES(helium_columns_apart, HELIUM_COLUMNS_APART, 2)
#else
/* Byte `i` of words, the lowest first. */
static inline int8_t byte_of(const int32_t *w, int32_t i)
{
    return (int8_t)(w[i >> 2] >> 8 * (i & 3));
}

/* The sums of a tile whose taps are at places[k] + 16 * tap + apart * window, for each k below count. */
static void helium_taps(const conv2d_helium_params *p, const int8_t *const *places, int32_t count, int32_t taps, int32_t apart,
                        int32_t *sums)
{
    const int32_t *w = p->weight;

    for (int32_t channel = 0; channel < p->out_c; channel += 2, sums += 8) {
        memset(sums, 0, 8 * sizeof *sums);
        for (int32_t k = 0; k < count; k++)
            for (int32_t tap = 0; tap < taps; tap++, w += 8)
                for (int32_t i = 0; i < 128; i++)
                    sums[i >> 4] += byte_of(w, 16 * (i >> 6) + (i & 15)) * places[k][16 * tap + apart * (i >> 4 & 3) + (i & 15)];
    }
}

static void helium_windows(const int8_t *windows, const conv2d_helium_params *p, int32_t *sums)
{
    helium_taps(p, &windows, 1, p->sixteens, HELIUM_WINDOW, sums);
}

static void helium_tiles(const conv2d_helium_params *p, const int8_t **places, int32_t tiles, int32_t apart, int32_t *sums)
{
    const int32_t count = 3 * (p->in_c >> 4);

    for (; tiles > 0; tiles--, sums += 4 * (p->out_c + (p->out_c & 1))) {
        helium_taps(p, places, count, 3, apart, sums);
        for (int32_t k = 0; k < count; k++)
            places[k] += 4 * apart;
    }
}

static void helium_columns(const conv2d_helium_params *p, const int8_t **places, int32_t tiles, int32_t *sums)
{
    helium_tiles(p, places, tiles, 16, sums);
}

static void helium_columns_apart(const conv2d_helium_params *p, const int8_t **places, int32_t tiles, int32_t *sums)
{
    helium_tiles(p, places, tiles, 32, sums);
}
#endif

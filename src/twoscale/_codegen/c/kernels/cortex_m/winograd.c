/* Winograd's F(2x2, 3x3) in integers: 2 x 2 sums of products with 3 x 3 weights from 4 x 4 bytes d, with 16 products for each
 * pair of channels instead of 36:
 *
 *     4 Y = A' [(2 G) g (2 G)' * (B' d B)] A
 *     B' d: d0 - d2, d1 + d2, d2 - d1, d1 - d3     A' m: m0 + m1 + m2, m1 - m2 - m3
 *     2 G g: 2 g0, g0 + g1 + g2, g0 - g1 + g2, 2 g2
 *
 * Weights are transformed when the network is exported. All steps are modulo 2^32, and four times a sum fits 32 bits, so the
 * sums are exact. A group is four tiles side by side: 2 x 8 sums from 4 x 10 pixels. */

/* The sum, and the difference, of both halves of two words. */
static inline int32_t plus(int32_t a, int32_t b)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
    return __sadd16(a, b);
#else
    return (int32_t)((((uint32_t)a + (uint32_t)b) & 0xffffu) | (((uint32_t)a & 0xffff0000u) + ((uint32_t)b & 0xffff0000u)));
#endif
}

static inline int32_t minus(int32_t a, int32_t b)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
    return __ssub16(a, b);
#else
    return (int32_t)((((uint32_t)a - (uint32_t)b) & 0xffffu) | (((uint32_t)a & 0xffff0000u) - ((uint32_t)b & 0xffff0000u)));
#endif
}

#define WINOGRAD_APART (WINOGRAD_WORDS / 16) /* words from one position to the next */

/* Words of the first and the third channel and of the second and the fourth, of one column: the sum or the difference of two
 * rows of d. */
#define WINOGRAD_COLUMN(OF_ROWS, EVEN, ODD) \
    { \
        const uint32_t of_a = four_bytes(a), of_b = four_bytes(b); \
\
        EVEN = OF_ROWS((int32_t)(of_a & 0x00ff00ffu), (int32_t)(of_b & 0x00ff00ffu)); \
        ODD = OF_ROWS((int32_t)(of_a >> 8 & 0x00ff00ffu), (int32_t)(of_b >> 8 & 0x00ff00ffu)); \
        a += in_c; \
        b += in_c; \
    }

/* A tile's four words of a row of B' d B, from four columns. */
#define WINOGRAD_ROW(Y, C0, C1, C2, C3) \
    { \
        (Y)[0] = minus(C0, C2); \
        (Y)[WINOGRAD_APART] = plus(C1, C2); \
        (Y)[2 * WINOGRAD_APART] = minus(C2, C1); \
        (Y)[3 * WINOGRAD_APART] = minus(C1, C3); \
    }

/* Two tiles of two columns each, after the columns 0 and 1. */
#define WINOGRAD_TILES(OF_ROWS, TILE) \
    { \
        WINOGRAD_COLUMN(OF_ROWS, even2, odd2) \
        WINOGRAD_COLUMN(OF_ROWS, even3, odd3) \
        WINOGRAD_ROW(y + (TILE), even0, even1, even2, even3) \
        WINOGRAD_ROW(y + 4 + (TILE), odd0, odd1, odd2, odd3) \
        WINOGRAD_COLUMN(OF_ROWS, even0, odd0) \
        WINOGRAD_COLUMN(OF_ROWS, even1, odd1) \
        WINOGRAD_ROW(y + (TILE) + 1, even2, even3, even0, even1) \
        WINOGRAD_ROW(y + 5 + (TILE), odd2, odd3, odd0, odd1) \
    }

/* A row of B' d B for all channels of a group, from two rows of d whose sum or difference it is. */
#define WINOGRAD_INPUTS(OF_ROWS) \
    const uint8_t *const end = a + in_c; \
\
    for (const int32_t next = 4 - 10 * in_c; a != end; a += next, b += next, y += 8) { \
        int32_t even0, even1, even2, even3, odd0, odd1, odd2, odd3; \
\
        WINOGRAD_COLUMN(OF_ROWS, even0, odd0) \
        WINOGRAD_COLUMN(OF_ROWS, even1, odd1) \
        WINOGRAD_TILES(OF_ROWS, 0) \
        WINOGRAD_TILES(OF_ROWS, 2) \
    }

static IN_REGISTERS void winograd_difference(const uint8_t *a, const uint8_t *b, int32_t in_c, int32_t *y)
{
    WINOGRAD_INPUTS(minus)
}

static IN_REGISTERS void winograd_sum(const uint8_t *a, const uint8_t *b, int32_t in_c, int32_t *y)
{
    WINOGRAD_INPUTS(plus)
}

/* B' d B of a group: [16][in_c / 2][4 tiles], with WINOGRAD_APART words from one position to the next. */
static void winograd_inputs(const uint8_t *const rows[4], int32_t in_c, int32_t *y)
{
    winograd_difference(rows[0], rows[2], in_c, y);
    winograd_sum(rows[1], rows[2], in_c, y + 4 * WINOGRAD_APART);
    winograd_difference(rows[2], rows[1], in_c, y + 8 * WINOGRAD_APART);
    winograd_difference(rows[1], rows[3], in_c, y + 12 * WINOGRAD_APART);
}

/* a.low * b.low + a.high * b.high. */
static inline int32_t products(int32_t a, int32_t b)
{
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP == 1
    return __smuad(a, b);
#else
    return add_products(a, b, 0);
#endif
}

/* A word of each tile and channel; FIRST(sum, x, w) begins a sum or adds to it. */
#define WINOGRAD_STEP(ADD) \
    { \
        const int32_t first = w[0], second = w[1]; \
        int32_t left = x[0], right = x[1]; \
\
        w += 2; \
        ADD(sum0, left, first) \
        ADD(sum1, left, second) \
        ADD(sum2, right, first) \
        ADD(sum3, right, second) \
        left = x[2]; \
        right = x[3]; \
        x += 4; \
        ADD(sum4, left, first) \
        ADD(sum5, left, second) \
        ADD(sum6, right, first) \
        ADD(sum7, right, second) \
    }
#define WINOGRAD_BEGIN(SUM, X, W) SUM = products(X, W);
#define WINOGRAD_ADD(SUM, X, W) SUM = add_products(X, W, SUM);

/* Products of a group's inputs with the weights of two channels: [16][4 tiles][2]. */
static INLINED void winograd_products_of(const int32_t *x, const int32_t *w, int32_t words, int32_t *sums)
{
    const int32_t *const last = sums + 16 * 8;
    const int32_t unused = WINOGRAD_APART - 4 * words;

    do {
        const int32_t *const end = w + 2 * words;
        int32_t sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7;

        WINOGRAD_STEP(WINOGRAD_BEGIN)
        for (;;) {
            WINOGRAD_STEP(WINOGRAD_ADD)
            WINOGRAD_STEP(WINOGRAD_ADD)
            WINOGRAD_STEP(WINOGRAD_ADD)
            WINOGRAD_STEP(WINOGRAD_ADD)
            WINOGRAD_STEP(WINOGRAD_ADD)
            WINOGRAD_STEP(WINOGRAD_ADD)
            WINOGRAD_STEP(WINOGRAD_ADD)
            if (w == end)
                break;
            WINOGRAD_STEP(WINOGRAD_ADD)
        }
        sums[0] = sum0;
        sums[1] = sum1;
        sums[2] = sum2;
        sums[3] = sum3;
        sums[4] = sum4;
        sums[5] = sum5;
        sums[6] = sum6;
        sums[7] = sum7;
        sums += 8;
        x += unused;
    } while (sums != last);
}

/* With 16 inputs there is no inner loop. */
static IN_REGISTERS void winograd_products_16(const int32_t *x, const int32_t *w, int32_t *sums)
{
    winograd_products_of(x, w, 8, sums);
}

static IN_REGISTERS void winograd_products(const int32_t *x, const int32_t *w, int32_t words, int32_t *sums)
{
    winograd_products_of(x, w, words, sums);
}

/* Products of one column. */
#define WINOGRAD_UPPER(COLUMN) ((uint32_t)m[8 * (COLUMN)] + (m1 + m2))
#define WINOGRAD_LOWER(COLUMN) (m1 - m2 - (uint32_t)m[96 + 8 * (COLUMN)])

/* A' m A plus a bias, divided by four: a tile of one channel. Products are volatile: compilers then read them in this order,
 * and need no memory for sums. */
static INLINED void winograd_output(const volatile int32_t *m, uint32_t bias, int32_t *y)
{
    uint32_t m1 = (uint32_t)m[40] + bias, m2 = (uint32_t)m[72], upper = WINOGRAD_UPPER(1), lower = WINOGRAD_LOWER(1);
    uint32_t left_upper = upper, left_lower = lower, right_upper = upper, right_lower = lower;

    m1 = (uint32_t)m[32];
    m2 = (uint32_t)m[64];
    left_upper += WINOGRAD_UPPER(0);
    left_lower += WINOGRAD_LOWER(0);
    m1 = (uint32_t)m[48];
    m2 = (uint32_t)m[80];
    upper = WINOGRAD_UPPER(2);
    lower = WINOGRAD_LOWER(2);
    y[0] = (int32_t)(left_upper + upper) >> 2;
    y[16] = (int32_t)(left_lower + lower) >> 2;
    right_upper -= upper;
    right_lower -= lower;
    m1 = (uint32_t)m[56];
    m2 = (uint32_t)m[88];
    y[2] = (int32_t)(right_upper - WINOGRAD_UPPER(3)) >> 2;
    y[18] = (int32_t)(right_lower - WINOGRAD_LOWER(3)) >> 2;
}

/* Sums from products [16][4 tiles][2]: [2 rows][8 columns][2]. Biases are four times as large. */
static IN_REGISTERS void winograd_outputs(const int32_t *m, const int32_t bias[2], int32_t *y)
{
    const uint32_t first = (uint32_t)bias[0], second = (uint32_t)bias[1];
    const int32_t *const end = m + 8;

    do {
        winograd_output(m, first, y);
        winograd_output(m + 1, second, y + 1);
        m += 2;
        y += 4;
    } while (m != end);
}

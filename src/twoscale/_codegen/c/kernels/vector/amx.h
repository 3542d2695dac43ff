/* AMX: matrices of bytes in tile registers, beside the vectors of AVX-512 with VNNI.
 *
 * A matrix of pixels has up to 16 rows of up to 64 bytes, four for each of 16 words. A matrix of weights has a row of 16
 * channels, of four bytes each, for every word. Their product is added to 16 sums for each pixel. Two matrices of pixels
 * (tile registers 4 and 5) are multiplied with two of weights (6 and 7), which gives four matrices of sums (0 to 3). */
#define HAS_MATRICES

typedef struct {
    uint8_t palette, start, zeros[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} matrix_shapes;

/* Set the sizes of all matrices: `pixels` rows, and `words` words. */
INLINE void begin_matrices(int32_t pixels, int32_t words)
{
    matrix_shapes shapes = {1, 0, {0}, {64, 64, 64, 64}, {0}};

    for (int32_t i = 0; i < 6; i++)
        shapes.rows[i] = (uint8_t)pixels;
    shapes.row_bytes[4] = shapes.row_bytes[5] = (uint16_t)(4 * words);
    shapes.row_bytes[6] = shapes.row_bytes[7] = 64;
    shapes.rows[6] = shapes.rows[7] = (uint8_t)words;
    /* Not _tile_loadconfig: gcc 12's reads 8 of the 64 bytes, so that gcc may leave out the others. The clobber also
     * makes sure that everything which tiles read has been written. */
    __asm__ volatile("ldtilecfg (%0)" ::"r"(&shapes) : "memory");
}

INLINE void end_matrices(void)
{
    _tile_release();
}

/* Every pixel begins with the same biases. `two_a`, `two_b`: whether there are two matrices of pixels, of weights. */
INLINE void begin_sums(const int32_t *bias, int32_t two_a, int32_t two_b)
{
    _tile_loadd(0, bias, 0);
    if (two_b)
        _tile_loadd(1, bias + 16, 0);
    if (two_a)
        _tile_loadd(2, bias, 0);
    if (two_a && two_b)
        _tile_loadd(3, bias + 16, 0);
}

/* A matrix of `words` words from packed weights. */
INLINE void unpack_matrix(int8_t *to, const int8_t *from, int32_t stride, int32_t words, int32_t bits)
{
    for (int32_t i = 0; i < words; i++)
        _mm512_storeu_si512(to + 64 * i, unpacked(load_weights(from + i * bits / 8 * stride), i % (8 / bits), bits));
}

/* Add the products of pixels, `step` bytes apart, and weights of `bits` bits, whose words are `stride` bytes apart. */
INLINE void add_matrices(const uint8_t *a0, const uint8_t *a1, int32_t step, const int8_t *b0, const int8_t *b1,
                         int32_t stride, int32_t words, int32_t bits, int32_t two_a, int32_t two_b)
{
    int8_t some[2][1024] __attribute__((aligned(64)));

    if (bits < 8) {
        unpack_matrix(some[0], b0, stride, words, bits);
        b0 = some[0];
        if (two_b) {
            unpack_matrix(some[1], b1, stride, words, bits);
            b1 = some[1];
        }
        stride = 64;
        __asm__ volatile("" ::: "memory"); /* what tiles read has been written */
    }
    _tile_loadd(4, a0, step);
    _tile_loadd(6, b0, stride);
    _tile_dpbusd(0, 4, 6);
    if (two_b) {
        _tile_loadd(7, b1, stride);
        _tile_dpbusd(1, 4, 7);
    }
    if (two_a) {
        _tile_loadd(5, a1, step);
        _tile_dpbusd(2, 5, 6);
    }
    if (two_a && two_b)
        _tile_dpbusd(3, 5, 7);
}

/* Store the sums: [2 matrices of pixels][16 pixels][2 matrices of weights][16]. */
INLINE void store_sums(int32_t *sums, int32_t two_a, int32_t two_b)
{
    _tile_stored(0, sums, 128);
    if (two_b)
        _tile_stored(1, sums + 16, 128);
    if (two_a)
        _tile_stored(2, sums + 512, 128);
    if (two_a && two_b)
        _tile_stored(3, sums + 528, 128);
}

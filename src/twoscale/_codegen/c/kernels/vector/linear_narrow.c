/* For layers whose window is the whole image: the images of a block are the pixels of one row. Threads share channels. */
INLINE void linear_images(const conv_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part, int32_t vectors,
                          int32_t bits, int32_t end)
{
    const window at = conv_window(p, vectors, bits);
    const int32_t block_bytes = at.stride * p->segments * p->words;
    const int32_t groups = (p->out_c + 15) / 16, last = start_of(groups, next(part));

    for (int32_t group = start_of(groups, part); group < last; group++) {
        const int8_t *w = p->weight + group / vectors * block_bytes + group % vectors * 64;
        int32_t image = 0;

        for (; image + PIXELS <= count; image += PIXELS) {
            conv_tile_rows rows;

            UNROLL
            for (int32_t n = 0; n < PIXELS; n++) {
                rows.x[n] = x + (image + n) * IMAGE_BYTES;
                rows.residual[n] = NULL;
                rows.y[n] = y + (image + n) * IMAGE_BYTES;
            }
            conv_tile(p, &at, &rows, w, 16 * group, PIXELS, bits, end);
        }
        for (; image < count; image++) {
            const conv_tile_rows rows = {{x + image * IMAGE_BYTES}, {NULL}, {y + image * IMAGE_BYTES}};

            conv_tile(p, &at, &rows, w, 16 * group, 1, bits, end);
        }
    }
}

/* A kernel for one form of results. The shape of the tile is that of other instruction sets. */
#define LINEAR(name, pixels, vectors, bits, end) \
    KERNEL void name(const conv_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part) \
    { \
        linear_images(p, x, y, count, part, vectors, bits, end); \
    }

/* For layers whose window is the whole image: the images of a block are the pixels of one row. Threads share channels. */
INLINE void linear_images(const conv_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part, int32_t wide,
                          int32_t vectors, int32_t bits, int32_t end)
{
    const int32_t fits = wide * vectors <= ACCUMULATORS;
    const int32_t together = vectors <= ACCUMULATORS ? vectors : 1;
    const int32_t pixels = fits ? wide : ACCUMULATORS / together;
    const int32_t stride = 64 * vectors, block_bytes = stride * p->segments * p->words;
    const int32_t groups = (p->out_c + 16 * together - 1) / (16 * together);
    const int32_t beyond = start_of(groups, next(part)) * 16 * together;
    const int32_t end_channel = beyond < p->out_c ? beyond : p->out_c;

    for (int32_t c = start_of(groups, part) * 16 * together; c < end_channel; c += 16 * together) {
        const int8_t *w = p->weight + c / (16 * vectors) * block_bytes + c % (16 * vectors) * 4;
        int32_t n = 0;

        for (; n < count && count >= pixels; n += pixels) {
            const int32_t first = n + pixels <= count ? n : count - pixels;
            const conv_rows at = {{x + first * IMAGE_BYTES}, {NULL}, {y + first * IMAGE_BYTES}};

            conv_tile(p, &at, w, w, 0, c, pixels, 1, together, IMAGE_BYTES, stride, 0, 0, bits, end);
        }
        for (; n < count; n++) {
            const conv_rows at = {{x + n * IMAGE_BYTES}, {NULL}, {y + n * IMAGE_BYTES}};

            conv_tile(p, &at, w, w, 0, c, 1, 1, together, IMAGE_BYTES, stride, 0, 0, bits, end);
        }
    }
}

/* A kernel for one shape of tile. */
#define LINEAR(name, pixels, vectors, bits, end) \
    KERNEL void name(const conv_params *p, const uint8_t *x, uint8_t *y, int32_t count, share part) \
    { \
        linear_images(p, x, y, count, part, pixels, vectors, bits, end); \
    }

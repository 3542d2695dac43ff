/* Copy an output of a block of images to the caller, whose outputs of one image have image_bytes; shift was added to the
 * integers to give the bytes. */
static inline void give_outputs(const uint8_t *y, int64_t count, uint8_t *outputs, int32_t image_bytes, int32_t bytes, int32_t shift)
{
    for (int64_t n = 0; n < count; n++) {
        uint8_t *const to = outputs + n * image_bytes;

        memcpy(to, y + n * IMAGE_BYTES, (size_t)bytes);
        for (int32_t i = 0; shift != 0 && i < bytes; i++)
            to[i] = (uint8_t)(to[i] - shift);
    }
}

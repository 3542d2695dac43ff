/* conv2d_tile for packed weights of 4 bits. */
static ALONE void conv2d_tile_4(const uint8_t *const *rows, int32_t count, int32_t run, int32_t apart, const int8_t *w,
                                int32_t sums[4])
{
    conv2d_tile_packed(rows, count, run, apart, w, sums, 4);
}

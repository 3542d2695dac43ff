/* From bytes back to int8 integers, in place: 128 is subtracted. */
static void to_int8(uint8_t *y, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const int8_t q = (int8_t)(y[i] - 128);

        memcpy(y + i, &q, 1);
    }
}

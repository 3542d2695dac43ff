/* Copy the last tensor of a block of images to the caller. */
static void give_outputs(const uint8_t *y, int64_t count, uint8_t *outputs)
{
    for (int64_t n = 0; n < count; n++) {
        memcpy(outputs + n * OUTPUT_BYTES, y + n * IMAGE_BYTES, OUTPUT_BYTES);
        for (int32_t i = 0; OUTPUT_SHIFT != 0 && i < OUTPUT_BYTES; i++)
            outputs[n * OUTPUT_BYTES + i] = (uint8_t)(outputs[n * OUTPUT_BYTES + i] - OUTPUT_SHIFT);
    }
}

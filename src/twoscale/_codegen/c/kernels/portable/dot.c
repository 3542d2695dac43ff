/* Sum of (x[i] - zero) * w[i]. 16-bit factors are exact, and processors have instructions for their products. */
static int32_t dot(const uint8_t *x, const int8_t *w, int32_t count, int32_t zero)
{
    int32_t sum = 0;

    for (int32_t i = 0; i < count; i++)
        sum += (int16_t)(x[i] - zero) * (int16_t)w[i];
    return sum;
}

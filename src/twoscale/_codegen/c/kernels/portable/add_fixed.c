/* Sum of two tensors in TensorFlow Lite's arithmetic, equation (19). The result may take the place of either. */
typedef struct {
    int32_t count;
    int32_t a_zero, a_mantissa, a_exponent;
    int32_t b_zero, b_mantissa, b_exponent;
    int32_t mantissa, exponent; /* of the sum */
    int32_t zero, lo, hi;
} add_fixed_params;

static void add_fixed(const add_fixed_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y)
{
    for (int32_t i = 0; i < p->count; i++) {
        const int32_t left = fixed_point((a[i] - p->a_zero) * ((int32_t)1 << 20), p->a_mantissa, p->a_exponent);
        const int32_t right = fixed_point((b[i] - p->b_zero) * ((int32_t)1 << 20), p->b_mantissa, p->b_exponent);
        const int32_t q = p->zero + fixed_point(left + right, p->mantissa, p->exponent);

        y[i] = (uint8_t)(q < p->lo ? p->lo : q > p->hi ? p->hi : q);
    }
}

/* Sixteen times TensorFlow Lite's requantization, equation (18): the portable fixed_point without branches. Compilers make
 * vectors of it. */
INLINE void fixed_numbers(int32_t *values, const int32_t *mantissa, const int32_t *exponent)
{
    UNROLL
    for (int32_t i = 0; i < 16; i++) {
        const int32_t left = exponent[i] > 0 ? exponent[i] : 0, right = left - exponent[i];
        const int64_t product = (int64_t)(int32_t)((uint32_t)values[i] << left) * mantissa[i];
        /* Bits 31 to 62: those above do not matter, so the shift may be a logical one, for which CPUs have vectors. */
        const int32_t high = (int32_t)((uint64_t)(product + ((int64_t)1 << 30)) >> 31);
        const int32_t mask = (int32_t)(((uint32_t)1 << right) - 1);

        values[i] = (high >> right) + ((high & mask) > (mask >> 1) + (high < 0));
    }
}

INLINE v16i fixed_16(v16i acc, const int32_t *mantissa, const int32_t *exponent)
{
    int32_t values[16];

    store_i((uint8_t *)values, acc, 16);
    fixed_numbers(values, mantissa, exponent);
    return load_i(values);
}

/* Fully connected layer with Helium, equations (2) and (3), four outputs at a time. */
typedef struct {
    int32_t in_count, out_count;
    int32_t sixteens;     /* of inputs, filled up with zeros */
    const int8_t *weight; /* [out_count / 4, rounded up][sixteens][4][16] */
    const int32_t *bias;  /* [out_count, rounded up], for activations that are less by 128 */
    requantization to;
} linear_helium_params;

static WITH_HELIUM void linear_four(const linear_helium_params *p, const int8_t *x, const int8_t *w, int32_t sums[4])
{
#if HAVE_HELIUM
    const int8_t *const end = x + 16 * p->sixteens;
    int32_t a = sums[0], b = sums[1], c = sums[2], d = sums[3];

    for (; x != end; x += 16, w += 64) {
        const int8x16_t bytes = vldrbq_s8(x);

        a = vmladavaq_s8(a, bytes, vldrbq_s8(w));
        b = vmladavaq_s8(b, bytes, vldrbq_s8(w + 16));
        c = vmladavaq_s8(c, bytes, vldrbq_s8(w + 32));
        d = vmladavaq_s8(d, bytes, vldrbq_s8(w + 48));
    }
    sums[0] = a;
    sums[1] = b;
    sums[2] = c;
    sums[3] = d;
#else
    for (int32_t i = 0; i < 64 * p->sixteens; i++)
        sums[i >> 4 & 3] += x[16 * (i >> 6) + (i & 15)] * w[i];
#endif
}

static void linear_helium(const linear_helium_params *p, const uint8_t *x, uint8_t *y)
{
    int8_t bytes[HELIUM_INPUTS];
    const int8_t *w = p->weight;

    helium_bytes(x, p->in_count, bytes);
    for (int32_t i = 0; i < p->out_count; i += 4, w += 64 * p->sixteens) {
        int32_t sums[4];

        memcpy(sums, p->bias + i, sizeof sums);
        linear_four(p, bytes, w, sums);
        for (int32_t k = 0; k < 4 && i + k < p->out_count; k++)
            store(&p->to, y, i + k, i + k, sums[k]);
    }
}

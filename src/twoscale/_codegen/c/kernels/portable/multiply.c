/* Product of two tensors, equation (3) with acc = (q_a - z_a) * (q_b - z_b). A step of 0 repeats an operand along a
 * dimension; the result may take the place of an operand that is not repeated. */
typedef struct {
    int32_t size[3]; /* of the result */
    int32_t a_step[3], b_step[3];
    int32_t a_zero, b_zero;
    requantization to;
} multiply_params;

static void multiply(const multiply_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y)
{
    int32_t index = 0;

    for (int32_t i = 0; i < p->size[0]; i++) {
        for (int32_t j = 0; j < p->size[1]; j++) {
            for (int32_t k = 0; k < p->size[2]; k++, index++) {
                const int32_t left = a[i * p->a_step[0] + j * p->a_step[1] + k * p->a_step[2]] - p->a_zero;
                const int32_t right = b[i * p->b_step[0] + j * p->b_step[1] + k * p->b_step[2]] - p->b_zero;

                store(&p->to, y, index, 0, left * right);
            }
        }
    }
}

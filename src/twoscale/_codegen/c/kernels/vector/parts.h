/* Sixteen numbers in PARTS registers: what is the same for every kind of them. NAME_parts.h defines the macros. */
typedef struct {
    INT_PART at[PARTS];
} v16i;
typedef struct {
    FLOAT_PART at[PARTS];
} v16f;

#define EACH UNROLL for (int32_t i = 0; i < PARTS; i++)
#define FIRST (16 / PARTS * i) /* of a part */

INLINE v16i set_i(int32_t value)
{
    v16i v;

    EACH v.at[i] = SET_I(value);
    return v;
}

INLINE v16i load_i(const int32_t *from)
{
    v16i v;

    EACH v.at[i] = LOAD_I(from + FIRST);
    return v;
}

INLINE v16i add_i(v16i a, v16i b)
{
    EACH a.at[i] = ADD_I(a.at[i], b.at[i]);
    return a;
}

/* Put numbers in 0..255 into byte `place` of each number of `all`. */
INLINE v16i put_byte(v16i all, v16i a, int32_t place)
{
    EACH all.at[i] = OR_I(all.at[i], SHIFT_I(a.at[i], 8 * place));
    return all;
}

INLINE void store_i(uint8_t *to, v16i a, int32_t count)
{
    int32_t numbers[16];

    EACH STORE_I(numbers + FIRST, a.at[i]);
    memcpy(to, numbers, (size_t)(count < 16 ? count : 16) * sizeof(int32_t));
}

INLINE v16f set_f(float value)
{
    v16f v;

    EACH v.at[i] = SET_F(value);
    return v;
}

/* The first `count` of 16; zeros for the rest. */
INLINE v16f load_f(const float *from, int32_t count)
{
    float some[16] = {0};
    v16f v;

    if (count < 16) {
        memcpy(some, from, (size_t)count * sizeof(float));
        from = some;
    }
    EACH v.at[i] = LOAD_F(from + FIRST);
    return v;
}

INLINE v16f to_f(v16i a)
{
    v16f v;

    EACH v.at[i] = TO_F(a.at[i]);
    return v;
}

INLINE v16f mul(v16f a, v16f b)
{
    EACH a.at[i] = MUL_F(a.at[i], b.at[i]);
    return a;
}

/* a * b + c, fused or not: used where both are correct. */
INLINE v16f mul_add(v16f a, v16f b, v16f c)
{
    EACH a.at[i] = MUL_ADD_F(a.at[i], b.at[i], c.at[i]);
    return a;
}

INLINE v16f divide(v16f a, v16f b)
{
    EACH a.at[i] = DIV_F(a.at[i], b.at[i]);
    return a;
}

INLINE v16f clamp_f(v16f a, v16f lo, v16f hi)
{
    EACH a.at[i] = MIN_F(MAX_F(a.at[i], lo.at[i]), hi.at[i]);
    return a;
}

/* RNE of |a| < 2^22. */
INLINE v16i round_f(v16f a)
{
    v16i v;

    EACH v.at[i] = ROUND_F(a.at[i]);
    return v;
}

INLINE v16b load_b(const uint8_t *from)
{
    return LOAD_B(from);
}

INLINE v16b set_b(uint8_t value)
{
    return SET_B(value);
}

INLINE v16b max_b(v16b a, v16b b)
{
    return MAX_B(a, b);
}

/* The first `count` of 16 bytes. */
INLINE void store_b(uint8_t *to, v16b a, int32_t count)
{
    uint8_t bytes[16];

    if (count >= 16) {
        STORE_B(to, a);
    } else {
        STORE_B(bytes, a);
        memcpy(to, bytes, (size_t)count);
    }
}

/* Where 16 bytes can be read: `from`, or `some` with the first `count` of them. */
INLINE const uint8_t *readable(const uint8_t *from, int32_t count, uint8_t *some)
{
    if (count >= 16)
        return from;
    memcpy(some, from, (size_t)count);
    return some;
}

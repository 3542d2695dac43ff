/* Registers of 128 bits: what all AArch64 processors have. */
typedef uint8x16_t v16b;

#define PARTS 4
#define INT_PART int32x4_t
#define FLOAT_PART float32x4_t
#define SET_I(value) vdupq_n_s32(value)
#define LOAD_I(from) vld1q_s32(from)
#define STORE_I(to, a) vst1q_s32(to, a)
#define ADD_I(a, b) vaddq_s32(a, b)
#define OR_I(a, b) vorrq_s32(a, b)
#define SHIFT_I(a, bits) vshlq_s32(a, vdupq_n_s32(bits))
#define SET_F(value) vdupq_n_f32(value)
#define LOAD_F(from) vld1q_f32(from)
#define TO_F(a) vcvtq_f32_s32(a)
#define MUL_F(a, b) vmulq_f32(a, b)
#define MUL_ADD_F(a, b, c) vfmaq_f32(c, a, b)
#define DIV_F(a, b) vdivq_f32(a, b)
#define MIN_F(a, b) vminq_f32(a, b)
#define MAX_F(a, b) vmaxq_f32(a, b)
#define ROUND_F(a) vcvtnq_s32_f32(a) /* of |a| < 2^31 */
#define LOAD_B(from) vld1q_u8(from)
#define STORE_B(to, a) vst1q_u8(to, a)
#define SET_B(value) vdupq_n_u8(value)
#define MIN_B(a, b) vminq_u8(a, b)
#define MAX_B(a, b) vmaxq_u8(a, b)
#define WEIGHTS int8x16_t
#define LOAD_WEIGHTS(from) vld1q_s8(from)
#define ZIP_16(zip, a, b) vreinterpretq_u8_u16(zip(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)))
#define LOW_8(a, b) vzip1q_u8(a, b)
#define HIGH_8(a, b) vzip2q_u8(a, b)
#define LOW_16(a, b) ZIP_16(vzip1q_u16, a, b)
#define HIGH_16(a, b) ZIP_16(vzip2q_u16, a, b)

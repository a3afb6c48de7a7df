// Distillation loss of rows of logits, and its gradient written over the student's.
//
// Each row is taken in a few passes that stay in the core's cache: maxima, exponentials with their sums, gradient.
// Sums are carried in double precision from block to block. Threads share the rows and a row is always summed in the
// same order, so the result does not depend on their number.
//
// With p = softmax(zt / T), q = softmax(zs / T), q1 = softmax(zs) and the label y of a row:
//   soft = T^2 sum p (log p - log q), or without the teacher's entropy T^2 sum -p log q
//   hard = -log q1[y]
//   zs <- alpha T (q - p) + (1 - alpha) (q1 - onehot(y))
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

namespace {

constexpr int64_t kBlock = 512;

struct bf16 {
    uint16_t bits;
};

inline float load(const float *p) { return *p; }

inline float load(const bf16 *p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline void store(float *p, float x) { *p = x; }

// Round to nearest, ties to even; a NaN stays one.
inline void store(bf16 *p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    p->bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// exp(x) of x <= 0 within 2 units in the last place: 2^n times a polynomial of |r| <= log(2) / 2. Below -87 it is
// exp(-87), about 1e-38. Coefficients: Cephes' expf (S. Moshier).
inline float exp_of_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float shifted = __builtin_fmaf(x, 1.44269504088896341f, 12582912.0f);
    float n = shifted - 12582912.0f;
    float r = __builtin_fmaf(n, -0.693359375f, x);
    r = __builtin_fmaf(n, 2.12194440e-4f, r);
    float y = 1.9875691500e-4f;
    y = __builtin_fmaf(y, r, 1.3981999507e-3f);
    y = __builtin_fmaf(y, r, 8.3334519073e-3f);
    y = __builtin_fmaf(y, r, 4.1665795894e-2f);
    y = __builtin_fmaf(y, r, 1.6666665459e-1f);
    y = __builtin_fmaf(y, r, 5.0000001201e-1f);
    y = __builtin_fmaf(y, r * r, r) + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;  // the low bits of `shifted` are n
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

template <class T>
float maximum(const T *z, int64_t width) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t k = 0; k < width; k++) {
        float x = load(z + k);
        top = x > top ? x : top;
    }
    return top;
}

// Sum of term(k) over a row: in single precision within a block, in double from block to block.
template <class Term>
inline double sum_over(int64_t width, Term term) {
    double total = 0;
    for (int64_t start = 0; start < width; start += kBlock) {
        int64_t end = start + kBlock < width ? start + kBlock : width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = start; k < end; k++) sum += term(k);
        total += sum;
    }
    return total;
}

// out <- exp((z - top) * scale); returns the sum.
template <class T>
double exponentials(const T *z, float top, float scale, int64_t width, float *out) {
    return sum_over(width, [=](int64_t k) { return out[k] = exp_of_negative((load(z + k) - top) * scale); });
}

// Sum of weight * ((zt - top_t) - (zs - top)), or of weight * -(zs - top) with `entropy` 0. Differences of the maxima
// are left out, so that what all logits share does not cost digits.
template <class T>
double expected(const T *zt, const T *zs, float top_t, float top, const float *weight, float entropy, int64_t width) {
    return sum_over(width, [=](int64_t k) {
        return weight[k] * (entropy * (load(zt + k) - top_t) - (load(zs + k) - top));
    });
}

struct Options {
    float alpha, temperature;
    bool entropy, gradient;
};

template <class T>
void hard_row(T *zs, int64_t label, int64_t width, Options o, float *es, double *hard) {
    const float top = maximum(zs, width);
    const double sum = exponentials(zs, top, 1.0f, width, es);
    *hard = (top - double(load(zs + label))) + std::log(sum);
    if (!o.gradient) return;
    const float q1 = float((1.0 - o.alpha) / sum);
#pragma omp simd
    for (int64_t k = 0; k < width; k++) store(zs + k, q1 * es[k]);
    store(zs + label, load(zs + label) - (1.0f - o.alpha));
}

template <class T>
void row(T *zs, const T *zt, int64_t label, int64_t width, Options o, float *es, float *et, double *soft,
         double *hard) {
    const double label_logit = load(zs + label);
    const float top = maximum(zs, width), top_t = maximum(zt, width), inverse = 1.0f / o.temperature;
    const bool plain = o.temperature == 1.0f;
    const double sum1 = plain ? 0 : exponentials(zs, top, 1.0f, width, es);
    const double sum = exponentials(zs, top, inverse, width, es), sum_t = exponentials(zt, top_t, inverse, width, et);
    const double cross = expected(zt, zs, top_t, top, et, o.entropy ? 1.0f : 0.0f, width) / sum_t;
    const double log_p = o.entropy ? std::log(sum_t) : 0;
    *soft = (cross * inverse - log_p + std::log(sum)) / (double(inverse) * inverse);
    *hard = (top - label_logit) + std::log(plain ? sum : sum1);
    if (!o.gradient) return;
    const float q = float(1.0 / sum), p = float(1.0 / sum_t), weight = o.alpha * o.temperature;
    const float q1 = float((1.0 - o.alpha) / (plain ? sum : sum1));
    if (plain) {
#pragma omp simd
        for (int64_t k = 0; k < width; k++) store(zs + k, weight * (q * es[k] - p * et[k]) + q1 * es[k]);
    } else {
#pragma omp simd
        for (int64_t k = 0; k < width; k++) {
            float e1 = exp_of_negative(load(zs + k) - top);
            store(zs + k, weight * (q * es[k] - p * et[k]) + q1 * e1);
        }
    }
    store(zs + label, load(zs + label) - (1.0f - o.alpha));
}

template <class T>
void rows(T *zs, const T *zt, const int64_t *labels, int64_t count, int64_t width, Options o, int threads,
          float *scratch, double *soft, double *hard) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t r = 0; r < count; r++) {
        float *es = scratch + int64_t(omp_get_thread_num()) * 2 * width;
        if (zt) {
            row(zs + r * width, zt + r * width, labels[r], width, o, es, es + width, soft + r, hard + r);
        } else {
            hard_row(zs + r * width, labels[r], width, o, es, hard + r);
        }
    }
}

}  // namespace

// zs, zt: [count, width], zt may be null. labels, soft, hard: [count]. scratch: [threads, 2, width].
#define EXPORT(NAME, T)                                                                                              \
    extern "C" void NAME(T *zs, const T *zt, const int64_t *labels, int64_t count, int64_t width, float alpha,       \
                         float temperature, int entropy, int gradient, int threads, float *scratch, double *soft,    \
                         double *hard) {                                                                             \
        rows(zs, zt, labels, count, width, {alpha, temperature, entropy != 0, gradient != 0}, threads, scratch,      \
             soft, hard);                                                                                            \
    }

EXPORT(losses_then_gradient_float32, float)
EXPORT(losses_then_gradient_bfloat16, bf16)

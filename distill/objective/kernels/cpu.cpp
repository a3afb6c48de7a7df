// Distillation loss of rows of logits, and its gradient written over the student's.
//
// Each row is taken in a few passes that stay in the core's cache: maxima, exponentials with their sums, gradient.
// Sums are carried in double precision from block to block. Threads share the rows and a row is always summed in the
// same order, so the result does not depend on their number.
//
// With p = softmax(zt / T), q = softmax(zs / T), q1 = softmax(zs) and the label y of a row:
//   soft = T^2 D(p, q), D one of the divergences below
//   hard = -log q1[y]
//   zs <- alpha T (w - q sum(w)) + (1 - alpha) (q1 - onehot(y)), w = q dD/dq; for forward KL w is -p
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

// log(x) of a normal x > 0 within 2 units in the last place of log(x), or of 1 near there: x = 2^n m, m within a factor
// of sqrt(2) of 1. Coefficients: Cephes' logf (S. Moshier).
inline float log_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    int32_t n = (bits - 0x3f3504f3) >> 23;
    bits -= n << 23;
    float m;
    std::memcpy(&m, &bits, sizeof m);
    float f = m - 1.0f, e = float(n), z = f * f;
    float y = 7.0376836292e-2f;
    y = __builtin_fmaf(y, f, -1.1514610310e-1f);
    y = __builtin_fmaf(y, f, 1.1676998740e-1f);
    y = __builtin_fmaf(y, f, -1.2420140846e-1f);
    y = __builtin_fmaf(y, f, 1.4249322787e-1f);
    y = __builtin_fmaf(y, f, -1.6668057665e-1f);
    y = __builtin_fmaf(y, f, 2.0000714765e-1f);
    y = __builtin_fmaf(y, f, -2.4999993993e-1f);
    y = __builtin_fmaf(y, f, 3.3333331174e-1f);
    y = y * f * z + e * -2.12194440e-4f - 0.5f * z;
    return f + y + e * 0.693359375f + (x - x);  // of a NaN one
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
    int divergence;
    float parameter;
    bool gradient;
};

// What an element adds to D, and w = q dD/dq. p and q are at least kSmallest, d is log q - log p.
struct Element {
    float loss, w;
};

constexpr float kSmallest = 1e-37f, kLargest = 1e37f;

inline float ratio(float a, float b) {
    float r = a / b;
    return r > kLargest ? kLargest : r;
}

// lambda KL(p || q) + (1 - lambda) KL(q || p)
struct SymmetricKL {
    float lambda;
    Element operator()(float p, float q, float d) const {
        float reverse = (1.0f - lambda) * q * d;
        return {reverse - lambda * p * d, reverse - lambda * p};
    }
};

// beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q
struct GeneralisedJS {
    float beta;
    Element operator()(float p, float q, float) const {
        float rest = 1.0f - beta;
        float of_q = rest * q * -log_of(beta * ratio(p, q) + rest);
        return {of_q - beta * p * log_of(beta + rest * ratio(q, p)), of_q};
    }
};

// sum |p - q| / 2
struct TotalVariation {
    float unused;
    Element operator()(float p, float q, float) const {
        float difference = q - p, size = difference < 0 ? -difference : difference;
        return {0.5f * size, size > 0 ? 0.5f * q * difference / size : difference};
    }
};

// KL(p || m), m = s p + (1 - s) q
struct SkewForwardKL {
    float s;
    Element operator()(float p, float q, float) const {
        float m = s + (1.0f - s) * ratio(q, p);  // in parts of p
        return {-p * log_of(m), (s - 1.0f) * q / m};
    }
};

// KL(q || m), m = (1 - s) p + s q
struct SkewReverseKL {
    float s;
    Element operator()(float p, float q, float) const {
        float m = (1.0f - s) * ratio(p, q) + s;  // in parts of q
        float loss = -q * log_of(m);
        return {loss, loss - q * s / m};
    }
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

// What the logits of a row have in common: maxima, 1 / T, 1 over the sums of exponentials, and log of their ratio.
struct Row {
    float top, top_t, inverse, q, p, shift;
};

// D of a row, and sum(w); w over `et`. `es` and `et` have the exponentials.
template <class Divergence, class T>
double divergence(const T *zs, const T *zt, Row at, int64_t width, const float *es, float *et, Divergence of,
                  double *total_w) {
    double total = 0, ws = 0;
    for (int64_t start = 0; start < width; start += kBlock) {
        int64_t end = start + kBlock < width ? start + kBlock : width;
        float sum = 0, sum_w = 0;
#pragma omp simd reduction(+ : sum, sum_w)
        for (int64_t k = start; k < end; k++) {
            float p = et[k] * at.p, q = es[k] * at.q;
            p = p < kSmallest ? kSmallest : p;  // a NaN stays one
            q = q < kSmallest ? kSmallest : q;
            Element one = of(p, q, ((load(zs + k) - at.top) - (load(zt + k) - at.top_t)) * at.inverse + at.shift);
            sum += one.loss;
            sum_w += one.w;
            et[k] = one.w;
        }
        total += sum;
        ws += sum_w;
    }
    *total_w = ws;
    return total;
}

template <class T>
double divergence(const T *zs, const T *zt, Row at, int64_t width, const float *es, float *et, Options o,
                  double *total_w) {
    auto with = [&](auto of) { return divergence(zs, zt, at, width, es, et, of, total_w); };
    switch (o.divergence) {
        case 2: return with(SymmetricKL{o.parameter});
        case 3: return with(GeneralisedJS{o.parameter});
        case 4: return with(TotalVariation{o.parameter});
        case 5: return with(SkewForwardKL{o.parameter});
        default: return with(SkewReverseKL{o.parameter});
    }
}

template <class T>
void row(T *zs, const T *zt, int64_t label, int64_t width, Options o, float *es, float *et, double *soft,
         double *hard) {
    const double label_logit = load(zs + label);
    const float top = maximum(zs, width), top_t = maximum(zt, width), inverse = 1.0f / o.temperature;
    const bool plain = o.temperature == 1.0f;
    const double sum1 = plain ? 0 : exponentials(zs, top, 1.0f, width, es);
    const double sum = exponentials(zs, top, inverse, width, es), sum_t = exponentials(zt, top_t, inverse, width, et);
    float q = float(1.0 / sum), p = float(1.0 / sum_t);
    if (o.divergence < 2) {  // cross-entropy, forward KL: w is -p, its sum -1
        const double entropy = o.divergence, log_p = o.divergence ? std::log(sum_t) : 0;
        const double cross = expected(zt, zs, top_t, top, et, float(entropy), width) / sum_t;
        *soft = (cross * inverse - log_p + std::log(sum)) / (double(inverse) * inverse);
        p = -p;
    } else {
        const Row at{top, top_t, inverse, q, p, float(std::log(sum_t) - std::log(sum))};
        double w = 0;
        *soft = divergence(zs, zt, at, width, es, et, o, &w) / (double(inverse) * inverse);
        q *= -float(w);
        p = 1;
    }
    *hard = (top - label_logit) + std::log(plain ? sum : sum1);
    if (!o.gradient) return;
    const float weight = o.alpha * o.temperature, q1 = float((1.0 - o.alpha) / (plain ? sum : sum1));
    if (plain) {
#pragma omp simd
        for (int64_t k = 0; k < width; k++) store(zs + k, weight * (q * es[k] + p * et[k]) + q1 * es[k]);
    } else {
#pragma omp simd
        for (int64_t k = 0; k < width; k++) {
            float e1 = exp_of_negative(load(zs + k) - top);
            store(zs + k, weight * (q * es[k] + p * et[k]) + q1 * e1);
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
                         float temperature, int divergence, float parameter, int gradient, int threads,              \
                         float *scratch, double *soft, double *hard) {                                               \
        rows(zs, zt, labels, count, width, {alpha, temperature, divergence, parameter, gradient != 0}, threads,      \
             scratch, soft, hard);                                                                                   \
    }

EXPORT(losses_then_gradient_float32, float)
EXPORT(losses_then_gradient_bfloat16, bf16)

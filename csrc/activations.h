// Scalar math of the activations, written once for every lane type: float, double (host and device)
// and the SIMD `Vec` of simd.h, which offers the same primitives. Included by simd.h (per target),
// the CUDA kernels and the double-precision oracle builds.
//
// Error bounds against the exact value, swept over all 2^32 floats in tests/test_activations.py:
// exp, sigmoid, tanh <= 4 ulp for float and double, subnormal results included.
#pragma once

#include <cmath>
#include <cstdint>

// Always inlined on the host, because a call would pass a Wide through memory; but not under a sanitizer,
// whose checks at every access would then compile for a quarter of an hour.
#if defined(__CUDACC__)
#define FASTRNN_HD __host__ __device__
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FASTRNN_HD
#else
#define FASTRNN_HD __attribute__((always_inline))
#endif

// Each instruction set compiles this file into a namespace of its own: a weak symbol shared between
// two of them would let the linker run AVX-512 code on any CPU.
#ifndef FASTRNN_TARGET
#define FASTRNN_TARGET generic
#endif

namespace fastrnn::FASTRNN_TARGET {

template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  static constexpr float log2e = 1.44269504088896341f;
  // ln 2 in two parts (Cody & Waite 1980); n * ln2_high is exact for |n| < 2^9.
  static constexpr float ln2_high = 0.693145751953125f;
  static constexpr float ln2_low = 1.42860682030942e-6f;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float lowest = -104.0f;           // exp rounds to 0 below
  static constexpr float highest = 89.0f;            // exp rounds to infinity above
  static constexpr float saturation = 40.0f;         // 1 + e^-x rounds to 1 above
  // (e^r - 1 - r) / r^2 on |r| <= ln2 / 2, Chebyshev interpolation; error of e^r 0.17 * 2^-24.
  static constexpr int degree = 4;
  static constexpr float coefficient[degree + 1] = {0.5f, 0.166665769538f, 0.0416665545723f,
                                                    0.00836318503153f, 0.00139261910562f};
};

template <>
struct Exponential<double> {
  static constexpr double log2e = 1.44269504088896340736;
  static constexpr double ln2_high = 0.6931471803691238164901733;  // exact product for |n| < 2^21
  static constexpr double ln2_low = 1.908214929270587816144e-10;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double lowest = -746.0;
  static constexpr double highest = 710.0;
  static constexpr double saturation = 80.0;
  static constexpr int degree = 10;  // error of e^r 0.002 * 2^-53
  static constexpr double coefficient[degree + 1] = {0.5,
                                                     0.16666666666666670995,
                                                     0.041666666666666669758,
                                                     0.0083333333333261293636,
                                                     0.001388888888888374419,
                                                     0.00019841269874840768638,
                                                     0.000024801587325562125808,
                                                     2.7557255374658742054e-6,
                                                     2.7557273624866476327e-7,
                                                     2.510522763655175914e-8,
                                                     2.0914694560351591585e-9};
};

// The primitives of a scalar lane; Vec has overloads of the same names in simd.h.

template <class V>
struct LaneOf {
  using type = V;
};

template <class T>
FASTRNN_HD inline T multiply_add(T a, T b, T c) {
  return std::fma(a, b, c);
}

// max and min return x when x is NaN, so that NaN propagates.
template <class T>
FASTRNN_HD inline T maximum(T bound, T x) {
  return x < bound ? bound : x;
}

template <class T>
FASTRNN_HD inline T minimum(T bound, T x) {
  return x > bound ? bound : x;
}

template <class T>
FASTRNN_HD inline T magnitude(T x) {
  return std::fabs(x);
}

template <class T>
FASTRNN_HD inline T with_sign_of(T sign, T nonnegative) {
  return std::copysign(nonnegative, sign);
}

// `value` where x > 0, else 0.
template <class T>
FASTRNN_HD inline T where_positive(T x, T value) {
  return x > T(0) ? value : T(0);
}

// On a device ldexp and the division branch for arguments that never come, and a branch keeps the gates of a
// unit from overlapping; so floats have ways of their own there.

// x * 2^n with one rounding; n holds an integer, at least -150 and at most 129, and 1/2 <= x < 2.
template <class T>
FASTRNN_HD inline T scale_by_power(T x, T n) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) {
    // The sum's last bits are n. Two factors: 2^n itself may be subnormal.
    constexpr float magic = Exponential<float>::round_magic;
    const int power = __float_as_int(n + magic) - __float_as_int(magic), half = power >> 1;
    return x * __int_as_float((half + 127) << 23) * __int_as_float((power - half + 127) << 23);
  }
#endif
  return std::ldexp(x, static_cast<int>(n));
}

// a / b for 1 <= b <= 2^60 and |a| <= b; on a device within 1 ulp.
template <class V>
FASTRNN_HD inline V quotient(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(V) == sizeof(float)) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
    const float near = a * reciprocal;
    return __fmaf_rn(reciprocal, __fmaf_rn(-b, near, a), near);
  }
#endif
  return a / b;
}

// x = n ln2 + r with |r| <= ln2 / 2; returns r and the polynomial p of e^r = 1 + r + r^2 p.
template <class V>
FASTRNN_HD inline V reduce(V x, V& n, V& p) {
  using E = Exponential<typename LaneOf<V>::type>;
  n = multiply_add(x, V(E::log2e), V(E::round_magic)) - V(E::round_magic);
  V r = multiply_add(n, V(-E::ln2_high), x);
  r = multiply_add(n, V(-E::ln2_low), r);
  p = V(E::coefficient[E::degree]);
#pragma GCC unroll 16
  for (int i = E::degree - 1; i >= 0; --i) p = multiply_add(p, r, V(E::coefficient[i]));
  return r;
}

// e^x for x in [lowest, highest].
template <class V>
FASTRNN_HD inline V bounded_exponential(V x) {
  V n, p;
  V r = reduce(x, n, p);
  return scale_by_power(multiply_add(multiply_add(p, r, V(1)), r, V(1)), n);
}

template <class V>
FASTRNN_HD inline V exponential(V x) {
  using E = Exponential<typename LaneOf<V>::type>;
  return bounded_exponential(minimum(V(E::highest), maximum(V(E::lowest), x)));
}

// e^x / (1 + e^x): a tiny result keeps its bits, and from `saturation` on the quotient is 1.
template <class V>
FASTRNN_HD inline V sigmoid(V x) {
  using E = Exponential<typename LaneOf<V>::type>;
  V e = bounded_exponential(minimum(V(E::saturation), maximum(V(E::lowest), x)));
  return quotient(e, e + V(1));
}

// With t = e^(2|x|) - 1: tanh |x| = t / (t + 2), and tanh is odd. t is formed without cancellation.
template <class V>
FASTRNN_HD inline V hyperbolic_tangent(V x) {
  using E = Exponential<typename LaneOf<V>::type>;
  V n, p;
  V r = reduce(minimum(V(E::saturation), magnitude(x + x)), n, p);
  V power = scale_by_power(V(1), n);
  V t = multiply_add(power, multiply_add(p, r * r, r), power - V(1));
  return with_sign_of(x, quotient(t, t + V(2)));
}

}  // namespace fastrnn::FASTRNN_TARGET

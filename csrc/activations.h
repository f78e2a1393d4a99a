// Scalar math of the activations, written once for every lane type: float, double (host and device)
// and the SIMD `Vec` of simd.h, which offers the same primitives. Included by simd.h (per target),
// the CUDA kernels and the double-precision oracle builds.
//
// Error bounds against the exact value, swept over all 2^32 floats in tests/test_activations.py:
// exp, sigmoid, tanh <= 4 ulp for float and double, subnormal results included.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define FASTRNN_HD __host__ __device__
#else
#define FASTRNN_HD
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
  static constexpr float tanh_lowest = -40.0f;       // tanh(x) rounds to +-1 for -2|x| below
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
  static constexpr double tanh_lowest = -80.0;
  static constexpr int degree = 10;  // error of e^r 0.002 * 2^-53
  static constexpr double coefficient[degree + 1] = {
      0.5,
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

template <class T>
FASTRNN_HD inline T absolute(T x) {
  return std::fabs(x);
}

template <class T>
FASTRNN_HD inline T copy_sign(T magnitude, T sign) {
  return std::copysign(magnitude, sign);
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
FASTRNN_HD inline T select_negative(T x, T if_negative, T otherwise) {
  return x < T(0) ? if_negative : otherwise;
}

// x * 2^n with one rounding; n holds an integer.
template <class T>
FASTRNN_HD inline T scale_by_power(T x, T n) {
  return std::ldexp(x, static_cast<int>(n));
}

// numerator / denominator with denominator in [1, 2].
template <class T>
FASTRNN_HD inline T divide(T numerator, T denominator) {
  return numerator / denominator;
}

// e^r - 1 for x = n ln2 + r with |r| <= ln2 / 2.
template <class V>
FASTRNN_HD inline V reduced_expm1(V x, V& n) {
  using T = typename LaneOf<V>::type;
  using E = Exponential<T>;
  n = multiply_add(x, V(E::log2e), V(E::round_magic)) - V(E::round_magic);
  V r = multiply_add(n, V(-E::ln2_high), x);
  r = multiply_add(n, V(-E::ln2_low), r);
  V p = V(E::coefficient[E::degree]);
#pragma GCC unroll 16
  for (int i = E::degree - 1; i >= 0; --i) p = multiply_add(p, r, V(E::coefficient[i]));
  return multiply_add(p, r * r, r);
}

template <class V>
FASTRNN_HD inline V exponential(V x) {
  using E = Exponential<typename LaneOf<V>::type>;
  V n;
  V q = reduced_expm1(minimum(V(E::highest), maximum(V(E::lowest), x)), n);
  return scale_by_power(q + V(1), n);
}

// 1 / (1 + e^-x), from e^-|x| <= 1 so that neither side overflows and a tiny result keeps its bits.
template <class V>
FASTRNN_HD inline V sigmoid(V x) {
  using E = Exponential<typename LaneOf<V>::type>;
  V n;
  V q = reduced_expm1(maximum(V(E::lowest), -absolute(x)), n);
  V e = scale_by_power(q + V(1), n);
  return divide(select_negative(x, e, V(1)), e + V(1));
}

// With t = e^(-2|x|) - 1 in (-1, 0]: tanh |x| = -t / (t + 2). t is formed without cancellation.
template <class V>
FASTRNN_HD inline V hyperbolic_tangent(V x) {
  using E = Exponential<typename LaneOf<V>::type>;
  V n;
  V q = reduced_expm1(maximum(V(E::tanh_lowest), absolute(x) * V(-2)), n);
  V power = scale_by_power(V(1), n);
  V t = multiply_add(power, q, power - V(1));
  return copy_sign(divide(-t, t + V(2)), x);
}

}  // namespace fastrnn::FASTRNN_TARGET

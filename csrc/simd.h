// Vec<T>: one SIMD register of T in GCC/Clang vector extensions, plus the few intrinsics that those
// cannot express; Wide<T, N>: N of them. Compiled once per target inside the target's namespace. No STL
// in here.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "activations.h"

#define FASTRNN_INLINE inline __attribute__((always_inline))

namespace fastrnn::FASTRNN_TARGET {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int vector_registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int vector_registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16;
constexpr int vector_registers = 32;
#else
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#endif

// The registers as non-dependent types: the attribute is lost on a typedef that depends on T.
template <class T>
struct Register;

template <>
struct Register<float> {
  typedef float Raw __attribute__((vector_size(vector_bytes)));
  typedef std::int32_t RawInteger __attribute__((vector_size(vector_bytes)));
  typedef std::uint32_t RawUnsigned __attribute__((vector_size(vector_bytes)));
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};

template <>
struct Register<double> {
  typedef double Raw __attribute__((vector_size(vector_bytes)));
  typedef std::int64_t RawInteger __attribute__((vector_size(vector_bytes)));
  typedef std::uint64_t RawUnsigned __attribute__((vector_size(vector_bytes)));
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

template <class T>
struct Vec {
  using Raw = typename Register<T>::Raw;
  using RawInteger = typename Register<T>::RawInteger;
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));

  Raw raw;

  Vec() = default;
  FASTRNN_INLINE Vec(Raw r) : raw(r) {}
  FASTRNN_INLINE explicit Vec(T x) : raw(x - Raw{}) {}

  static FASTRNN_INLINE Vec load(const T* p) {
    Vec v;
    __builtin_memcpy(&v.raw, p, sizeof(Raw));
    return v;
  }
  FASTRNN_INLINE void store(T* p) const { __builtin_memcpy(p, &raw, sizeof(Raw)); }

  // Only the first `count` lanes are written.
  FASTRNN_INLINE void store_partial(T* p, int count) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), raw);
    } else {
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1u), raw);
    }
#else
    __builtin_memcpy(p, &raw, bounded(count) * sizeof(T));
#endif
  }

  // The lanes from `count` on are 0, and not read.
  static FASTRNN_INLINE Vec load_partial(const T* p, int count) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      return Vec(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p));
    } else {
      return Vec(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), p));
    }
#else
    Vec v(T(0));
    __builtin_memcpy(&v.raw, p, bounded(count) * sizeof(T));
    return v;
#endif
  }

  // Of a row with `count` values left.
  static FASTRNN_INLINE Vec load_up_to(const T* p, std::int64_t count) {
    return count >= lanes ? load(p) : load_partial(p, static_cast<int>(count));
  }
  FASTRNN_INLINE void store_up_to(T* p, std::int64_t count) const {
    if (count >= lanes) {
      store(p);
    } else {
      store_partial(p, static_cast<int>(count));
    }
  }

  static FASTRNN_INLINE unsigned bounded(int count) {
    return static_cast<unsigned>(count) < lanes ? static_cast<unsigned>(count) : lanes;
  }

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return a.raw + b.raw; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return a.raw - b.raw; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return a.raw * b.raw; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return a.raw / b.raw; }
  friend FASTRNN_INLINE Vec operator-(Vec a) { return -a.raw; }
};

template <class T>
struct LaneOf<Vec<T>> {
  using type = T;
};

#if defined(__AVX512F__)
FASTRNN_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(__FMA__)
FASTRNN_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(__aarch64__)
FASTRNN_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmaq_f32(c.raw, a.raw, b.raw));
}
FASTRNN_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmaq_f64(c.raw, a.raw, b.raw));
}
#else
template <class T>
FASTRNN_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
#endif

// Of the x86 instructions max and min the second operand is the result where either is NaN.
#if defined(__AVX512F__)
FASTRNN_INLINE Vec<float> maximum(Vec<float> bound, Vec<float> x) {
  return Vec<float>(_mm512_maskz_max_ps(static_cast<__mmask16>(-1), bound.raw, x.raw));
}
FASTRNN_INLINE Vec<float> minimum(Vec<float> bound, Vec<float> x) {
  return Vec<float>(_mm512_maskz_min_ps(static_cast<__mmask16>(-1), bound.raw, x.raw));
}
FASTRNN_INLINE Vec<double> maximum(Vec<double> bound, Vec<double> x) {
  return Vec<double>(_mm512_maskz_max_pd(static_cast<__mmask8>(-1), bound.raw, x.raw));
}
FASTRNN_INLINE Vec<double> minimum(Vec<double> bound, Vec<double> x) {
  return Vec<double>(_mm512_maskz_min_pd(static_cast<__mmask8>(-1), bound.raw, x.raw));
}
#elif defined(__AVX2__)
FASTRNN_INLINE Vec<float> maximum(Vec<float> bound, Vec<float> x) {
  return Vec<float>(_mm256_max_ps(bound.raw, x.raw));
}
FASTRNN_INLINE Vec<float> minimum(Vec<float> bound, Vec<float> x) {
  return Vec<float>(_mm256_min_ps(bound.raw, x.raw));
}
FASTRNN_INLINE Vec<double> maximum(Vec<double> bound, Vec<double> x) {
  return Vec<double>(_mm256_max_pd(bound.raw, x.raw));
}
FASTRNN_INLINE Vec<double> minimum(Vec<double> bound, Vec<double> x) {
  return Vec<double>(_mm256_min_pd(bound.raw, x.raw));
}
#else
template <class T>
FASTRNN_INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) {
  return x.raw < bound.raw ? bound.raw : x.raw;
}
template <class T>
FASTRNN_INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) {
  return x.raw > bound.raw ? bound.raw : x.raw;
}
#endif

template <class T>
FASTRNN_INLINE typename Register<T>::RawInteger sign_bit(Vec<T> x) {
  using RawInteger = typename Register<T>::RawInteger;
  return reinterpret_cast<RawInteger>(x.raw) & reinterpret_cast<RawInteger>(Vec<T>(T(-0.0)).raw);
}
template <class T>
FASTRNN_INLINE Vec<T> magnitude(Vec<T> x) {
  using RawInteger = typename Register<T>::RawInteger;
  return reinterpret_cast<typename Register<T>::Raw>(reinterpret_cast<RawInteger>(x.raw) ^ sign_bit(x));
}
template <class T>
FASTRNN_INLINE Vec<T> with_sign_of(Vec<T> sign, Vec<T> nonnegative) {
  using RawInteger = typename Register<T>::RawInteger;
  return reinterpret_cast<typename Register<T>::Raw>(reinterpret_cast<RawInteger>(nonnegative.raw) |
                                                     sign_bit(sign));
}

template <class T>
FASTRNN_INLINE Vec<T> where_positive(Vec<T> x, Vec<T> value) {
  return Vec<T>(x.raw > typename Vec<T>::Raw{} ? value.raw : typename Vec<T>::Raw{});
}

#if defined(__AVX512F__)
FASTRNN_INLINE Vec<float> scale_by_power(Vec<float> x, Vec<float> n) {
  return Vec<float>(_mm512_maskz_scalef_ps(static_cast<__mmask16>(-1), x.raw, n.raw));
}
FASTRNN_INLINE Vec<double> scale_by_power(Vec<double> x, Vec<double> n) {
  return Vec<double>(_mm512_maskz_scalef_pd(static_cast<__mmask8>(-1), x.raw, n.raw));
}
#else
// In two factors, each a normal number: only the second product can round, in the subnormal range.
template <class T>
FASTRNN_INLINE Vec<T> scale_by_power(Vec<T> x, Vec<T> n) {
  using R = Register<T>;
  using RawInteger = typename R::RawInteger;
  const Vec<T> magic(Exponential<T>::round_magic);
  const RawInteger exponent =
      reinterpret_cast<RawInteger>((n + magic).raw) - reinterpret_cast<RawInteger>(magic.raw);
  const RawInteger half = exponent >> 1;
  const RawInteger first = (half + R::exponent_bias) << R::mantissa_bits;
  const RawInteger second = (exponent - half + R::exponent_bias) << R::mantissa_bits;
  return x.raw * reinterpret_cast<typename R::Raw>(first) * reinterpret_cast<typename R::Raw>(second);
}
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTRNN_SHUFFLE
#endif
#endif

#if defined(FASTRNN_SHUFFLE)
template <int... index>
struct Indices {};
template <int n, int... index>
struct CountTo : CountTo<n - 1, n - 1, index...> {};
template <int... index>
struct CountTo<0, index...> {
  using type = Indices<index...>;
};

// Swaps the blocks off the diagonal of 2 x 2 blocks of `distance` lanes.
template <int distance, class T, int... lane>
FASTRNN_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, Indices<lane...>) {
  constexpr int lanes = Vec<T>::lanes;
  const auto low =
      __builtin_shufflevector(a.raw, b.raw, (lane / distance % 2 ? lanes + lane - distance : lane)...);
  b.raw = __builtin_shufflevector(a.raw, b.raw, (lane / distance % 2 ? lanes + lane : lane + distance)...);
  a.raw = low;
}

template <int distance, class T>
FASTRNN_INLINE void transpose_from(Vec<T> (&rows)[Vec<T>::lanes]) {
  if constexpr (distance < Vec<T>::lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < Vec<T>::lanes; ++i) {
      if (i / distance % 2) continue;
      swap_blocks<distance>(rows[i], rows[i + distance], typename CountTo<Vec<T>::lanes>::type());
    }
    transpose_from<distance * 2>(rows);
  }
}
#endif

// Lane j of row i becomes lane i of row j.
template <class T>
FASTRNN_INLINE void transpose(Vec<T> (&rows)[Vec<T>::lanes]) {
#if defined(FASTRNN_SHUFFLE)
  transpose_from<1>(rows);
#else
  constexpr int lanes = Vec<T>::lanes;
  for (int i = 0; i < lanes; ++i) {
    for (int j = i + 1; j < lanes; ++j) {
      const T upper = rows[i].raw[j];
      rows[i].raw[j] = rows[j].raw[i];
      rows[j].raw[i] = upper;
    }
  }
#endif
}

// N registers that go through the same math side by side. An activation is one chain of 13 operations of
// 4 cycles each; a core looks ahead some hundred operations, which is too few chains when they stand one
// after the other: six abreast take 9.3 ns per LSTM vector, one at a time 14.1 ns.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int abreast = 2;  // compiles in a minute
#else
constexpr int abreast = 6;
#endif

template <class T, int N>
struct Wide {
  Vec<T> part[N];

  Wide() = default;
  FASTRNN_INLINE explicit Wide(T x) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) part[i] = Vec<T>(x);
  }
};

template <class T, int N>
struct LaneOf<Wide<T, N>> {
  using type = T;
};

// One operation on all parts; the parameter packs of a variadic helper would triple the compile time.
#define FASTRNN_EACH_PART(expression)                                              \
  Wide<T, N> result;                                                               \
  _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i) result.part[i] = expression; \
  return result;
template <class T, int N>
FASTRNN_INLINE Wide<T, N> operator+(const Wide<T, N>& a, const Wide<T, N>& b) {
  FASTRNN_EACH_PART(a.part[i].raw + b.part[i].raw)
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> operator-(const Wide<T, N>& a, const Wide<T, N>& b) {
  FASTRNN_EACH_PART(a.part[i].raw - b.part[i].raw)
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> operator*(const Wide<T, N>& a, const Wide<T, N>& b) {
  FASTRNN_EACH_PART(a.part[i].raw * b.part[i].raw)
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> operator/(const Wide<T, N>& a, const Wide<T, N>& b) {
  FASTRNN_EACH_PART(a.part[i].raw / b.part[i].raw)
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> operator-(const Wide<T, N>& a) {
  FASTRNN_EACH_PART(-a.part[i].raw)
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> multiply_add(const Wide<T, N>& a, const Wide<T, N>& b, const Wide<T, N>& c) {
  FASTRNN_EACH_PART(multiply_add(a.part[i], b.part[i], c.part[i]))
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> maximum(const Wide<T, N>& bound, const Wide<T, N>& x) {
  FASTRNN_EACH_PART(maximum(bound.part[i], x.part[i]))
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> minimum(const Wide<T, N>& bound, const Wide<T, N>& x) {
  FASTRNN_EACH_PART(minimum(bound.part[i], x.part[i]))
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> magnitude(const Wide<T, N>& x) {
  FASTRNN_EACH_PART(magnitude(x.part[i]))
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> with_sign_of(const Wide<T, N>& sign, const Wide<T, N>& nonnegative) {
  FASTRNN_EACH_PART(with_sign_of(sign.part[i], nonnegative.part[i]))
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> where_positive(const Wide<T, N>& x, const Wide<T, N>& value) {
  FASTRNN_EACH_PART(where_positive(x.part[i], value.part[i]))
}
template <class T, int N>
FASTRNN_INLINE Wide<T, N> scale_by_power(const Wide<T, N>& x, const Wide<T, N>& n) {
  FASTRNN_EACH_PART(scale_by_power(x.part[i], n.part[i]))
}
#undef FASTRNN_EACH_PART

}  // namespace fastrnn::FASTRNN_TARGET

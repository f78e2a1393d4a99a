// cells.h and activations.h for the threads of a device.
//
// Device code may read no static array of a class, such as the coefficients of `Exponential`; but it may
// follow a constant pointer to an array of its own, which nvcc folds into the instructions. So a float on the
// device gets a lane type whose coefficients are that pointer; the numbers stay in activations.h alone.
#pragma once

#include "activations.h"

#if defined(__CUDACC__)

#include <utility>

namespace fastrnn::FASTRNN_TARGET {

template <class T>
struct DeviceLane {};

template <>
struct LaneOf<float> {
  using type = DeviceLane<float>;
};
template <>
struct LaneOf<double> {
  using type = DeviceLane<double>;
};

template <class T, class Indices = std::make_integer_sequence<int, Exponential<T>::degree + 1>>
struct DeviceCoefficients;
template <class T, int... k>
struct DeviceCoefficients<T, std::integer_sequence<int, k...>> {
  T value[sizeof...(k)] = {Exponential<T>::coefficient[k]...};
};

__device__ constexpr DeviceCoefficients<float> float_coefficients;
__device__ constexpr DeviceCoefficients<double> double_coefficients;

template <>
struct Exponential<DeviceLane<float>> : Exponential<float> {
  static constexpr const float* coefficient = float_coefficients.value;
};
template <>
struct Exponential<DeviceLane<double>> : Exponential<double> {
  static constexpr const double* coefficient = double_coefficients.value;
};

}  // namespace fastrnn::FASTRNN_TARGET

#endif

#include "cells.h"

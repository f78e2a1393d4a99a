// As much of DLPack 1.x (https://dmlc.github.io/dlpack) as it takes to read a tensor of another library
// where it lies, by the table of C functions that its type carries: a tenth of what a Python call costs.
#pragma once

#include <cstdint>

namespace fastrnn::dlpack {

struct DataType {
  std::uint8_t code;  // 0 signed, 1 unsigned, 2 floating-point, 6 bool
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major, minor;
};

// A tensor with its memory.
struct Owned {
  Version version;
  void* context;
  void (*destroy)(Owned* self);
  std::uint64_t flags;
  Tensor tensor;
};

struct Exchange {
  Version version;
  void* previous;
  void *allocate, *export_owned;
  int (*import_owned)(Owned* tensor, void** object);  // takes the tensor; -1 with a Python error set
  int (*view)(void* object, Tensor* out);  // valid while the object lives; -1 with a Python error set
  void* current_stream;
};

constexpr std::int32_t cpu = 1;
constexpr std::uint8_t floating_point = 2;
constexpr const char* capsule_name = "dlpack_exchange_api";

}  // namespace fastrnn::dlpack

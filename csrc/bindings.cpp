// The Python binding: arrays become a Forward call, errors name the argument, the interpreter lock is
// left where the work is worth it. The only file that includes pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "affine.h"
#include "dispatch.h"
#include "dlpack.h"
#include "numbers.h"
#include "parallel.h"
#include "regularise.h"
#include "rnn.h"
#include "roof.h"
#include "runtime.h"
#include "update.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

// ---- arrays and their errors ----------------------------------------------------------------------

std::string describe(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (i) text += ", ";
    text += std::to_string(array.shape(i));
  }
  return text + (array.ndim() == 1 ? ",) " : ") ") + py::str(array.dtype()).cast<std::string>();
}

template <class T>
const char* dtype_name();
template <>
const char* dtype_name<float>() {
  return "float32";
}
template <>
const char* dtype_name<double>() {
  return "float64";
}
template <>
const char* dtype_name<bool>() {
  return "bool";
}
template <>
const char* dtype_name<std::int64_t>() {
  return "int64";
}

// A size that is fixed, or a letter for one that the array decides.
struct Size {
  Size(std::int64_t n) : text(std::to_string(n)), value(n) {}
  Size(const char* letter) : text(letter) {}
  std::string text;
  std::int64_t value = -1;
};

std::string expected_shape(const std::vector<Size>& sizes, const char* dtype) {
  std::string text = "(";
  for (std::size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + sizes[i].text;
  return text + (sizes.size() == 1 ? ",) " : ") ") + dtype;
}

template <class T>
[[noreturn]] void refuse(const char* name, const std::vector<Size>& sizes, const py::array& array) {
  const std::string message =
      std::string(name) + ": expected " + expected_shape(sizes, dtype_name<T>()) + ", got " + describe(array);
  if (!array.dtype().is(py::dtype::of<T>())) throw py::type_error(message);
  throw py::value_error(message);
}

std::string type_name(py::handle object) {
  return py::str(py::type::of(object).attr("__name__")).cast<std::string>();
}

// The tensor classes of torch, once it is there, and how to read their objects.
struct TensorTypes {
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  const dlpack::Exchange* exchange = nullptr;
};
TensorTypes tensor_types;

// Nothing where the object is no tensor of exactly those classes on the CPU. Its negative bit, which says
// that all values are to be negated, is not looked at.
std::optional<dlpack::Tensor> raw_view(py::handle object) {
  const PyTypeObject* const type = Py_TYPE(object.ptr());
  if (!tensor_types.exchange || (type != tensor_types.tensor && type != tensor_types.parameter)) return {};
  dlpack::Tensor view;
  if (tensor_types.exchange->view(object.ptr(), &view) != 0) {
    PyErr_Clear();
    return {};
  }
  if (view.device_type != dlpack::cpu || view.dtype.lanes != 1) return {};
  return view;
}

// The same, or nothing where memory does not hold the values.
std::optional<dlpack::Tensor> view_tensor(py::handle object) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  const std::optional<dlpack::Tensor> view = raw_view(object);
  if (!view || view->dtype.code != dlpack::floating_point) return view;
  const auto negative = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), name));
  if (!negative) throw py::error_already_set();
  if (negative.is(py::bool_(true))) return {};
  return view;
}

PyObject* descriptor_of(const dlpack::DataType& type) {
  static PyObject* const native[] = {
      py::dtype::of<float>().release().ptr(), py::dtype::of<double>().release().ptr(),
      py::dtype::of<std::int64_t>().release().ptr(), py::dtype::of<bool>().release().ptr()};
  if (type.code == 2 && type.bits == 32) return native[0];
  if (type.code == 2 && type.bits == 64) return native[1];
  if (type.code == 0 && type.bits == 64) return native[2];
  return type.code == 6 && type.bits == 8 ? native[3] : nullptr;
}

// An array on the memory of a tensor, or null.
PyObject* array_on(py::handle object) {
  constexpr int most_axes = 8;
  const std::optional<dlpack::Tensor> view = view_tensor(object);
  PyObject* const descriptor = view ? descriptor_of(view->dtype) : nullptr;
  if (!descriptor || view->ndim > most_axes) return nullptr;
  const auto& api = py::detail::npy_api::get();
  Py_intptr_t shape[most_axes], strides[most_axes];
  for (int axis = 0; axis < view->ndim; ++axis) {
    shape[axis] = static_cast<Py_intptr_t>(view->shape[axis]);
    strides[axis] = static_cast<Py_intptr_t>(view->strides[axis] * (view->dtype.bits / 8));
  }
  PyObject* const array = api.PyArray_NewFromDescr_(
      api.PyArray_Type_, py::handle(descriptor).inc_ref().ptr(), view->ndim, shape, strides,
      static_cast<char*>(view->data) + view->byte_offset, py::detail::npy_api::NPY_ARRAY_WRITEABLE_, nullptr);
  if (!array) throw py::error_already_set();
  api.PyArray_SetBaseObject_(array, object.inc_ref().ptr());
  return array;
}

// A tensor on memory that `owner` keeps; it may die on any thread, without the interpreter lock.
template <class T>
py::object tensor_on(T* data, const std::vector<std::int64_t>& shape, std::shared_ptr<void> owner) {
  struct Block {
    dlpack::Owned owned{};  // the first member: destroy gets its address
    std::int64_t shape[2], strides[2];
    std::shared_ptr<void> owner;
  };
  auto block = std::make_unique<Block>();
  block->owner = std::move(owner);
  std::copy(shape.begin(), shape.end(), block->shape);
  block->strides[0] = shape.size() == 2 ? shape[1] : 1;
  block->strides[1] = 1;
  block->owned.version = {1, 0};
  block->owned.destroy = [](dlpack::Owned* owned) { delete reinterpret_cast<Block*>(owned); };
  block->owned.tensor = {data,
                         dlpack::cpu,
                         0,
                         static_cast<std::int32_t>(shape.size()),
                         {dlpack::floating_point, 8 * sizeof(T), 1},
                         block->shape,
                         block->strides,
                         0};
  void* object = nullptr;
  if (tensor_types.exchange->import_owned(&block.release()->owned, &object) != 0) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

std::shared_ptr<void> shared_memory(std::size_t bytes) {
  void* const memory = std::aligned_alloc(cache_line, (bytes + cache_line - 1) / cache_line * cache_line);
  if (!memory) throw std::bad_alloc();
  return {memory, std::free};
}

// A new tensor, and where its values are.
template <class T>
std::pair<py::object, T*> new_tensor(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  std::shared_ptr<void> memory = shared_memory(static_cast<std::size_t>(count) * sizeof(T));
  T* const data = static_cast<T*>(memory.get());
  return {tensor_on(data, shape, std::move(memory)), data};
}

// 32 or 64 where all objects but None are tensors of that floating-point type, on the CPU; else 0.
int common_bits(const py::args& tensors) {
  int bits = 0;
  for (const py::handle tensor : tensors) {
    if (tensor.is_none()) continue;
    const std::optional<dlpack::Tensor> view = view_tensor(tensor);
    if (!view || view->dtype.code != dlpack::floating_point || view->dtype.bits < 32) return 0;
    if (bits && bits != view->dtype.bits) return 0;
    bits = view->dtype.bits;
  }
  return bits;
}

// Returns whether such tensors can be read.
bool read_tensors_of(const py::type& tensor, const py::type& parameter) {
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) return false;
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* const exchange =
      static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name));
  if (!exchange) throw py::error_already_set();
  if (exchange->version.major != 1 || !exchange->view) return false;
  tensor_types = {reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr()),
                  reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr()), exchange};
  return true;
}

// Anything NumPy can view without a copy, so no lists and no numbers.
py::array as_array(const char* name, py::handle object) {
  static PyTypeObject* const exact = py::detail::npy_api::get().PyArray_Type_;
  if (Py_TYPE(object.ptr()) == exact) return py::reinterpret_borrow<py::array>(object);
  if (py::isinstance<py::array>(object)) {
    if (py::hasattr(object, "mask")) {
      throw py::type_error(std::string(name) + ": expected an array, got a masked one");
    }
    return py::reinterpret_borrow<py::array>(object);
  }
  if (PyObject* const array = array_on(object)) return py::reinterpret_steal<py::array>(array);
  std::string message = std::string(name) + ": expected an array, got " + type_name(object);
  if (!py::hasattr(object, "__array__") && !PyObject_CheckBuffer(object.ptr())) throw py::type_error(message);
  PyObject* array = py::detail::npy_api::get().PyArray_FromAny_(object.ptr(), nullptr, 0, 0, 0, nullptr);
  if (!array) {
    // What the object's own conversion says, as torch's does of a tensor with a gradient.
    py::error_already_set error;
    throw py::type_error(message + ": " + py::str(error.value()).cast<std::string>());
  }
  return py::reinterpret_steal<py::array>(array);
}

template <class T>
bool has_dtype(const py::array& array) {
  // The descriptor of a native type is one object for all arrays; others need a closer look.
  static PyObject* const native = py::dtype::of<T>().release().ptr();
  if (py::detail::array_proxy(array.ptr())->descr == native) return true;
  return py::dtype::of<T>().equal(array.dtype());
}

// New C-contiguous array, by NumPy's own constructor: this is most of what a step costs.
template <class T, std::size_t N>
py::array new_array(const std::array<std::int64_t, N>& shape) {
  static const auto& api = py::detail::npy_api::get();
  static PyObject* const native = py::dtype::of<T>().release().ptr();
  Py_intptr_t sizes[N];
  for (std::size_t i = 0; i < N; ++i) sizes[i] = static_cast<Py_intptr_t>(shape[i]);
  PyObject* array = api.PyArray_NewFromDescr_(api.PyArray_Type_, py::handle(native).inc_ref().ptr(),
                                              static_cast<int>(N), sizes, nullptr, nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(array);
}

template <class T>
T* data_of(py::handle array) {
  return reinterpret_cast<T*>(py::detail::array_proxy(array.ptr())->data);
}

// ---- the engine ------------------------------------------------------------------------------------

// Memory of large results, used again when the last array in it is gone: a training step makes and drops the
// same arrays each time, and fresh pages cost a fifth of its time.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  Storage take(std::size_t bytes) {
    const auto fits = [&](const Storage& idle) {
      return idle.size() >= bytes && idle.size() <= bytes + bytes / 4;
    };
    Storage storage;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = std::find_if(idle_.begin(), idle_.end(), fits);
      if (found != idle_.end()) {
        storage = std::move(*found);
        idle_.erase(found);
      }
    }
    storage.reserve(bytes);
    return storage;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.clear();
  }

  // The storage's memory; the last copy gives it back.
  std::shared_ptr<void> lend(Storage storage) {
    void* const data = storage.data();
    auto lent = std::make_shared<Storage>(std::move(storage));
    return {data, [pool = shared_from_this(), lent](void*) { pool->give(std::move(*lent)); }};
  }

  // The same as what arrays take as their base.
  py::capsule owner(Storage storage) {
    using Lent = std::shared_ptr<void>;
    auto lent = std::make_unique<Lent>(lend(std::move(storage)));
    return py::capsule(lent.release(), [](void* memory) { delete static_cast<Lent*>(memory); });
  }

 private:
  void give(Storage storage) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.size() == most) idle_.erase(idle_.begin());
    idle_.push_back(std::move(storage));
  }

  static constexpr std::size_t most = 4;  // of the gradients, the output and the gradient of the input
  std::mutex mutex_;                      // tensors may die on any thread, without the interpreter lock
  std::vector<Storage> idle_;
};

// How the arrays of a call are laid out.
struct Layout {
  std::int64_t steps, batch;
  bool batched;
  int time_axis;

  std::vector<std::int64_t> shape(std::int64_t width) const {
    if (!batched) return {steps, width};
    if (time_axis) return {batch, steps, width};
    return {steps, batch, width};
  }

  template <class T>
  py::array sequence(std::int64_t width) const {
    if (!batched) return new_array<T, 2>({steps, width});
    if (time_axis) return new_array<T, 3>({batch, steps, width});
    return new_array<T, 3>({steps, batch, width});
  }

  // The same in memory of the pool, where it is large.
  template <class T>
  py::array sequence(std::int64_t width, Pool& pool) const {
    constexpr std::size_t large = std::size_t{1} << 17;
    const std::size_t bytes = static_cast<std::size_t>(steps * batch * width) * sizeof(T);
    if (bytes < large) return sequence<T>(width);
    Storage storage = pool.take(bytes);
    T* const data = static_cast<T*>(storage.data());
    return py::array_t<T>(shape(width), data, pool.owner(std::move(storage)));
  }

  std::int64_t step(std::int64_t width) const { return time_axis ? width : batch * width; }
  std::int64_t row(std::int64_t width) const { return time_axis ? steps * width : width; }
};

// A tape with what it refers to.
class KeptCall {
 public:
  virtual ~KeptCall() = default;
  virtual std::size_t bytes() const = 0;
  bool consumed = false;
  bool busy = false;  // another thread's backward is at work on it
};

template <class T>
class TypedKeptCall final : public KeptCall {
 public:
  std::size_t bytes() const override { return tape ? tape->bytes() : 0; }

  std::unique_ptr<Tape<T>> tape;
  Storage block;  // of the packed weights in forward, then of the gradients
  py::object x, y;
  Layout layout;
  std::shared_ptr<const int> maker;  // identity of the engine
};

// A tape as its engine made it; raises where it is another's, used up or in use.
template <class Own, class Any>
Own& opened(Any& any, const std::shared_ptr<const int>& engine) {
  auto* const own = dynamic_cast<Own*>(&any);
  if (!own || own->maker != engine) {
    throw py::value_error("tape: expected one that this layer's forward returned, got another layer's");
  }
  if (own->consumed) {
    throw py::value_error("tape: expected one that is open, got one that backward consumed (see retain)");
  }
  if (own->busy) throw py::value_error("tape: expected one that no other thread uses, got one in use");
  return *own;
}

// Gate gradients of single steps during one backward pass.
class KeptSteps {
 public:
  virtual ~KeptSteps() = default;
};

template <class T>
struct TypedKeptSteps final : KeptSteps {
  std::unique_ptr<StepGradients<T>> steps;
};

// Of fastrnn.functional.Noise.
Noise read_noise(const py::tuple& given) {
  Noise noise;
  double* const fields[] = {&noise.dropout,   &noise.input_dropout, &noise.recurrent_dropout,
                            &noise.zoneout_h, &noise.zoneout_c,     &noise.weight_drop};
  if (given.size() != std::size(fields) + 1) throw py::value_error("noise: expected 7 values");
  for (std::size_t i = 0; i < std::size(fields); ++i) *fields[i] = given[i].cast<double>();
  noise.training = given[std::size(fields)].cast<bool>();
  return noise;
}

class Engine {
 public:
  virtual ~Engine() = default;
  virtual void pack(const py::sequence& parameters) = 0;
  virtual void release() = 0;  // of memory that training holds on to
  virtual py::tuple forward(py::handle x, py::handle state, py::handle lengths, py::handle resets,
                            bool batch_first, const py::tuple& noise, std::uint64_t seed, bool keep,
                            py::handle parameters, bool guard, py::handle tensors, bool exact,
                            bool all_states) = 0;
  // Raises where a call would.
  virtual void check(py::handle x, py::handle state, py::handle lengths, py::handle resets,
                     bool batch_first) const = 0;
  virtual py::tuple backward(KeptCall& kept, const py::sequence& parameters, py::handle grad_output,
                             py::handle grad_state, bool retain, bool input, py::handle x, bool borrow,
                             py::handle grad_states) = 0;
  virtual py::tuple step(py::handle x, py::handle state) = 0;
  // Of `step`, by expectation.
  virtual void set_zoneout(double h, double c) = 0;
  // One step of tensors, state (B, H) or (H,), with weights that `hold` would take; None where one does not
  // fit. With `keep`, not `exact` says that the state is of a step with the same weights.
  // With `keep` (h, c or None, tape) instead of h or (h, c).
  virtual py::object cell(py::handle x, py::handle h, py::handle c, const py::sequence& weights, bool exact,
                          bool keep) = 0;
  // Of x, h, c (None of cells without) and the weights; of those not if `steps` is to keep what `add_up`
  // forms them of. None of x if that is not wanted.
  virtual py::tuple cell_backward(KeptCall& kept, const py::sequence& weights, py::handle grad_h,
                                  py::handle grad_c, py::handle x, bool input, KeptSteps* steps) = 0;
  virtual std::unique_ptr<KeptSteps> keep_steps() = 0;
  virtual py::tuple add_up(KeptSteps& steps) = 0;

  const Config& config() const { return config_; }

 protected:
  explicit Engine(const Config& config) : config_(config) {}
  const Config config_;
};

template <class T>
class TypedEngine final : public Engine {
 public:
  explicit TypedEngine(const Config& config)
      : Engine(config),
        network_(make_cpu_network<T>(config)),
        parameters_(parameters_of(config)),
        rooms_(network_->gradient_rooms()) {
    for (const Parameter& parameter : parameters_) {
      std::int64_t count = 1;
      for (const std::int64_t size : parameter.shape) count *= size;
      parameter_count_ += count;
    }
  }

  void pack(const py::sequence& arrays) override {
    std::vector<py::array> held;
    const std::vector<const T*> pointers = read_parameters(arrays, held);
    std::shared_ptr<const Weights<T>> packed;
    {
      py::gil_scoped_release unlocked;
      packed = network_->pack(pointers.data());
    }
    weights_ = std::move(packed);
    packed_ = std::move(held);
    held_.clear();
  }

  // Packs tensors unless they are those that are packed: by identity, by version, and by their values, of
  // which it takes a sample unless told to be exact. Returns false where that would cost as much as packing.
  // Nothing between this and the copy of weights_ that a call makes may release the interpreter lock.
  bool hold(const py::sequence& tensors, bool exact) {
    if (!checkable(exact)) return false;
    if (holds(tensors, exact ? Look::all : Look::rows)) return true;
    pack(tensors);
    for (std::size_t i = 0; i < packed_.size(); ++i) {
      const py::object tensor = tensors[i];
      const std::optional<long> version = version_of(tensor);
      const std::optional<dlpack::Tensor> view = raw_view(tensor);
      if (!version || !view ||
          address(*view) != data_of<char>(packed_[i])) {  // a copy does not change with it
        held_.clear();
        return true;
      }
      held_.push_back({tensor, *version});
    }
    for (const Look look : {Look::few, Look::rows}) sample_[static_cast<int>(look)] = checksum(look);
    checksum_ = exact ? std::optional(checksum(Look::all)) : std::nullopt;
    return true;
  }

  void release() override {
    idle_tapes_.clear();
    idle_steps_.clear();
    pool_->clear();
  }

  std::vector<const T*> read_parameters(const py::sequence& arrays,
                                        std::vector<py::array>& contiguous) const {
    if (py::len(arrays) != parameters_.size()) {
      throw py::value_error("parameters: expected " + std::to_string(parameters_.size()) + " arrays, got " +
                            std::to_string(py::len(arrays)));
    }
    std::vector<const T*> pointers;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const Parameter& parameter = parameters_[i];
      py::array array = as_array(parameter.name.c_str(), arrays[i]);
      bool fits = has_dtype<T>(array) && array.ndim() == static_cast<py::ssize_t>(parameter.shape.size());
      for (std::size_t axis = 0; fits && axis < parameter.shape.size(); ++axis) {
        fits = array.shape(static_cast<py::ssize_t>(axis)) == parameter.shape[axis];
      }
      if (!fits) {
        refuse<T>(parameter.name.c_str(), {parameter.shape.begin(), parameter.shape.end()}, array);
      }
      contiguous.push_back(py::array_t<T, py::array::c_style>::ensure(array));
      pointers.push_back(data_of<const T>(contiguous.back()));
    }
    return pointers;
  }

  py::tuple forward(py::handle x_object, py::handle state, py::handle lengths_object,
                    py::handle resets_object, bool batch_first, const py::tuple& noise, std::uint64_t seed,
                    bool keep, py::handle parameters_object, bool guard, py::handle tensors, bool exact,
                    bool all_states) override {
    const Borrowing borrowing(!tensors.is_none());
    Sequence sequence = read_sequence(x_object, state, lengths_object, resets_object, batch_first);
    const Layout& layout = sequence.layout;
    Forward<T>& call = sequence.call;
    if (keep) {
      sequence.x = contiguous(py::reinterpret_borrow<py::array>(sequence.x));
      call.x = contiguous_view(sequence.x, layout);
    }
    call.noise = read_noise(noise);
    call.seed = seed;
    call.guard = guard;

    const bool drops_weights = call.noise.weight_drop > 0;
    if (!tensors.is_none() &&
        (drops_weights || !hold(py::reinterpret_borrow<py::sequence>(tensors), exact))) {
      if (keep || drops_weights) {
        parameters_object = tensors;  // packed on the way
      } else {
        pack(py::reinterpret_borrow<py::sequence>(tensors));
      }
    }
    const std::int64_t width = config_.output_size();
    py::array y = keep ? layout.sequence<T>(width, *pool_) : layout.sequence<T>(width);
    call.y = data_of<T>(y);
    call.y_step = layout.step(width);
    call.y_row = layout.row(width);
    py::object states = py::none();
    if (all_states) states = make_states(layout, call);
    std::vector<py::array> held_parameters;
    std::vector<const T*> parameters;
    if (drops_weights && parameters_object.is_none()) {
      throw py::value_error("parameters: expected those of which weights are to be dropped, got None");
    }
    if (!parameters_object.is_none() && (keep || drops_weights)) {
      parameters = read_parameters(py::reinterpret_borrow<py::sequence>(parameters_object), held_parameters);
      call.parameters = parameters.data();
    }
    Storage block;
    if (call.parameters) {
      block = pool_->take(block_bytes());
      call.scratch = block.data();
    }
    if (!keep) {
      const py::tuple result = finish(std::move(y), layout, call);
      return all_states ? py::make_tuple(result[0], result[1], states) : result;
    }
    auto kept = new_kept_call(layout);
    kept->block = std::move(block);
    kept->x = sequence.x;
    kept->y = y;
    call.tape = kept->tape.get();
    const py::tuple result = finish(y, layout, call);
    auto tape = std::unique_ptr<KeptCall>(std::move(kept));
    py::object output = result[0];
    if (guard) {
      // The tape reads h_t there; a view of what is read-only can never be made writable.
      y.attr("setflags")(false);
      output = y.attr("view")();
    }
    if (!all_states) return py::make_tuple(output, result[1], std::move(tape));
    return py::make_tuple(output, result[1], std::move(tape), states);
  }

  py::tuple backward(KeptCall& any, const py::sequence& arrays, py::handle grad_output, py::handle grad_state,
                     bool retain, bool input, py::handle x, bool borrow, py::handle grad_states) override {
    const Borrowing borrowing(borrow);
    TypedKeptCall<T>& kept = open_tape(any);
    const Layout& layout = kept.layout;
    Backward<T> call;
    call.retain = retain;
    std::vector<py::array> held;
    const std::vector<const T*> parameters = read_parameters(arrays, held);
    call.parameters = parameters.data();
    if (!x.is_none()) call.x = move_input(kept, x);
    const py::object grad_y = read_grad_output(grad_output, layout, call);
    const Held grad_final = read_grad_state(grad_state, layout, call);
    const Held grad_all = read_grad_states(grad_states, layout, call);

    py::object grad_x = py::none();
    if (input) {
      grad_x = layout.sequence<T>(config_.input_size, *pool_);
      call.grad_x = data_of<T>(grad_x);
      call.grad_x_step = layout.step(config_.input_size);
      call.grad_x_row = layout.row(config_.input_size);
    }
    py::object grad_h0 = state_array(config_.state_size(), layout), grad_c0;
    call.grad_h0 = data_of<T>(grad_h0);
    if (config_.has_cell_state()) {
      grad_c0 = state_array(config_.hidden_size, layout);
      call.grad_c0 = data_of<T>(grad_c0);
    }
    if (kept.block.size() == 0) kept.block = pool_->take(block_bytes());
    const std::vector<T*> pointers = gradient_pointers(kept.block.data());
    call.gradients = pointers.data();
    run_backward(kept, call);
    py::list gradients;
    const py::capsule owner = pool_->owner(std::move(kept.block));
    for (std::size_t i = 0; i < pointers.size(); ++i) {
      gradients.append(py::array_t<T>(parameters_[i].shape, pointers[i], owner));
    }
    py::object state = grad_h0;
    if (config_.has_cell_state()) state = py::make_tuple(grad_h0, grad_c0);
    return py::make_tuple(grad_x, state, gradients);
  }

  py::tuple step(py::handle x_object, py::handle state) override {
    if (config_.bidirectional) {
      throw py::value_error("step: a bidirectional layer needs the whole sequence; call the layer");
    }
    const py::array x = as_array("x", x_object);
    const bool batched = x.ndim() != 1;
    if (x.ndim() > 2 || x.ndim() < 1 || x.shape(x.ndim() - 1) != config_.input_size || !has_dtype<T>(x)) {
      if (!batched) refuse<T>("x", {config_.input_size}, x);
      refuse<T>("x", {"B", config_.input_size}, x);
    }
    Forward<T> call;
    call.steps = 1;
    call.batch = batched ? x.shape(0) : 1;
    call.x = {data_of<const char>(x), {0, batched ? x.strides(0) : 0, x.strides(x.ndim() - 1)}};
    const Held held = read_state(state, batched, call);
    const std::int64_t width = config_.output_size();
    py::array y = batched ? new_array<T, 2>({call.batch, width}) : new_array<T, 1>({width});
    call.y = data_of<T>(y);
    call.y_row = width;
    call.noise = step_noise_;
    return finish(std::move(y), {1, call.batch, batched, 0}, call);
  }

  py::object cell(py::handle x_object, py::handle h_object, py::handle c_object, const py::sequence& weights,
                  bool exact, bool keep) override {
    const Borrowing borrowing(true);
    const std::optional<dlpack::Tensor> x = view_values(x_object);
    const int axes = x ? x->ndim : 0;
    if ((axes != 1 && axes != 2) || x->shape[axes - 1] != config_.input_size) return py::none();
    Forward<T> call;
    call.steps = 1;
    call.batch = axes == 2 ? x->shape[0] : 1;
    call.x = row_view(*x);
    for (const auto& [object, view] : {std::pair(h_object, &call.h0), std::pair(c_object, &call.c0)}) {
      if (object.is_none()) continue;
      const std::optional<dlpack::Tensor> state = view_values(object);
      if (!state || state->ndim != axes || state->shape[axes - 1] != config_.hidden_size) return py::none();
      if (axes == 2 && state->shape[0] != call.batch) return py::none();
      *view = row_view(*state);
    }
    if (keep && (x->strides[axes - 1] != 1 || (axes == 2 && x->strides[0] != config_.input_size))) {
      return py::none();
    }
    // Weights were looked at when the sequence began: at the step that returned the state.
    const bool goes_on = keep ? !exact : !h_object.is_none() && h_object.is(last_h_);
    const Look look = goes_on ? Look::few : exact ? Look::all : Look::rows;
    // Last, because reading a tensor may release the interpreter lock.
    if (!checkable(exact) || !holds(weights, look)) {
      for (const py::handle weight : weights) {
        if (!view_values(weight)) return py::none();
      }
      if (!hold(weights, exact)) pack(weights);
    }
    std::vector<std::int64_t> shape{config_.hidden_size};
    if (axes == 2) shape.insert(shape.begin(), call.batch);
    std::unique_ptr<TypedKeptCall<T>> kept;
    if (keep) {
      kept = new_kept_call({1, call.batch, axes == 2, 0});
      kept->x = py::reinterpret_borrow<py::object>(x_object);
      call.tape = kept->tape.get();
      call.guard = false;
    }
    auto [h, h_data] = new_tensor<T>(shape);
    call.hn = call.y = h_data;  // the next step's backward does not read y: there is none
    call.y_row = config_.hidden_size;
    py::object c = py::none();
    if (config_.has_cell_state()) std::tie(c, call.cn) = new_tensor<T>(shape);
    run(call);
    if (keep) return py::make_tuple(std::move(h), std::move(c), std::unique_ptr<KeptCall>(std::move(kept)));
    last_h_ = h;
    if (c.is_none()) return std::move(h);
    return py::make_tuple(std::move(h), std::move(c));
  }

  py::tuple cell_backward(KeptCall& any, const py::sequence& weights, py::handle grad_h, py::handle grad_c,
                          py::handle x, bool wants_input, KeptSteps* steps) override {
    const Borrowing borrowing(true);
    TypedKeptCall<T>& kept = open_tape(any);
    const Layout& layout = kept.layout;
    Backward<T> call;
    if (steps) {
      call.steps = dynamic_cast<TypedKeptSteps<T>&>(*steps).steps.get();
      if (!call.steps) throw std::runtime_error("steps: expected some that are not yet added up");
    }
    std::vector<py::array> held;
    std::vector<const T*> parameters;
    if (!steps || !call.steps->has_packed(wants_input)) parameters = read_parameters(weights, held);
    call.parameters = parameters.data();
    const std::optional<dlpack::Tensor> input = view_values(x);
    if (!input) throw py::type_error("x: expected the tensor that the cell was given");
    call.x = row_view(*input);
    py::object held_h, held_c;
    const auto read = [&](const char* name, py::handle object, py::object& array) -> const T* {
      if (object.is_none()) return nullptr;
      if (const auto view = view_values(object); view && adjacent(*view)) {
        return reinterpret_cast<const T*>(address(*view));
      }
      array = py::array_t<T, py::array::c_style>::ensure(as_array(name, object));
      return data_of<const T>(array);
    };
    call.grad_hn = read("grad_h", grad_h, held_h);
    call.grad_cn = read("grad_c", grad_c, held_c);

    const auto shape = [&](std::int64_t width) {
      return layout.batched ? std::vector<std::int64_t>{layout.batch, width}
                            : std::vector<std::int64_t>{width};
    };
    py::list gradients;
    const auto add = [&](std::int64_t width) {
      auto [tensor, data] = new_tensor<T>(shape(width));
      gradients.append(std::move(tensor));
      return data;
    };
    if (wants_input) {
      call.grad_x = add(config_.input_size);
      call.grad_x_row = config_.input_size;
    } else {
      gradients.append(py::none());
    }
    call.grad_h0 = add(config_.hidden_size);
    if (config_.has_cell_state()) {
      call.grad_c0 = add(config_.hidden_size);
    } else {
      gradients.append(py::none());
    }
    if (steps) {
      run_backward(kept, call);
      return py::tuple(gradients);
    }
    const std::shared_ptr<void> block = pool_->lend(pool_->take(block_bytes()));
    const std::vector<T*> pointers = gradient_pointers(block.get());
    call.gradients = pointers.data();
    run_backward(kept, call);
    append_tensors(gradients, pointers, block);
    return py::tuple(gradients);
  }

  std::unique_ptr<KeptSteps> keep_steps() override {
    auto kept = std::make_unique<TypedKeptSteps<T>>();
    kept->steps = take(idle_steps_);
    if (!kept->steps) kept->steps = network_->make_step_gradients();
    return kept;
  }

  py::tuple add_up(KeptSteps& any) override {
    const Borrowing borrowing(true);
    auto& kept = dynamic_cast<TypedKeptSteps<T>&>(any);
    std::unique_ptr<StepGradients<T>> steps = std::move(kept.steps);
    if (!steps) throw std::runtime_error("steps: expected some that are not yet added up");
    const std::shared_ptr<void> block = pool_->lend(pool_->take(block_bytes()));
    const std::vector<T*> pointers = gradient_pointers(block.get());
    std::unique_ptr<Workspace> workspace = take(idle_);
    if (!workspace) workspace = network_->make_workspace();
    {
      py::gil_scoped_release unlocked;
      network_->add_up(*steps, *workspace, pointers.data());
    }
    idle_.push_back(std::move(workspace));
    if (idle_steps_.empty()) idle_steps_.push_back(std::move(steps));
    py::list gradients;
    append_tensors(gradients, pointers, block);
    return py::tuple(gradients);
  }

  void set_zoneout(double h, double c) override {
    step_noise_.zoneout_h = h;
    step_noise_.zoneout_c = c;
  }

  void check(py::handle x, py::handle state, py::handle lengths, py::handle resets,
             bool batch_first) const override {
    read_sequence(x, state, lengths, resets, batch_first);
  }

 private:
  void append_tensors(py::list& list, const std::vector<T*>& pointers,
                      const std::shared_ptr<void>& block) const {
    for (std::size_t i = 0; i < pointers.size(); ++i) {
      list.append(tensor_on(pointers[i], parameters_[i].shape, block));
    }
  }

  // Of a tensor of T.
  static std::optional<dlpack::Tensor> view_values(py::handle object) {
    const std::optional<dlpack::Tensor> view = view_tensor(object);
    if (!view || view->dtype.code != dlpack::floating_point || view->dtype.bits != 8 * sizeof(T)) return {};
    return view;
  }

  // Of rows (B, n) or one row (n,).
  static View row_view(const dlpack::Tensor& tensor) {
    constexpr std::int64_t size = sizeof(T);
    const bool rows = tensor.ndim == 2;
    return {address(tensor), {0, rows ? tensor.strides[0] * size : 0, tensor.strides[rows] * size}};
  }

  // Of no other layout than a whole tensor of its shape.
  static bool adjacent(const dlpack::Tensor& tensor) {
    std::int64_t next = 1;
    for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
      if (tensor.shape[axis] != 1 && tensor.strides[axis] != next) return false;
      next *= tensor.shape[axis];
    }
    return true;
  }

  struct HeldTensor {
    py::object tensor;
    long version;
  };

  static char* address(const dlpack::Tensor& view) {
    return static_cast<char*>(view.data) + view.byte_offset;
  }

  // None of a tensor that was made in inference mode: it counts none.
  static std::optional<long> version_of(py::handle tensor) {
    static PyObject* const name = PyUnicode_InternFromString("_version");
    const auto version = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), name));
    if (!version) {
      PyErr_Clear();
      return {};
    }
    return PyLong_AsLong(version.ptr());
  }

  // Whether looking at the values costs less than packing.
  bool checkable(bool exact) const {
    constexpr std::int64_t most = 1 << 20;  // bytes, and below them one thread is enough
    return !exact || parameter_count_ * std::int64_t{sizeof(T)} <= most;
  }

  // Which values of the packed arrays to look at for changes that torch does not count. `rows`: one in each,
  // which writes to whole rows, columns or arrays do not spare. `few`: between two steps of one sequence.
  enum class Look { few, rows, all };

  bool holds(const py::sequence& tensors, Look look) const {
    if (held_.empty() || py::len(tensors) != held_.size() || (look == Look::all && !checksum_)) return false;
    for (std::size_t i = 0; i < held_.size(); ++i) {
      const py::object tensor = tensors[i];
      if (!tensor.is(held_[i].tensor) || version_of(tensor) != held_[i].version) return false;
      const std::optional<dlpack::Tensor> view = raw_view(tensor);
      if (!view || address(*view) != data_of<char>(packed_[i])) return false;
    }
    return checksum(look) == (look == Look::all ? *checksum_ : sample_[static_cast<int>(look)]);
  }

  std::uint64_t checksum(Look look) const {
    constexpr int chains = 4;  // of FNV-1a, 64 bits at a time: one would wait for its products
    constexpr std::int64_t step = 7;
    std::uint64_t hash[chains];
    std::fill_n(hash, chains, 14695981039346656037u);
    const auto take = [&](int chain, std::uint64_t bits) {
      hash[chain] = (hash[chain] ^ bits) * 1099511628211u;
    };
    for (const py::array& array : packed_) {
      const T* const values = data_of<const T>(array);
      if (look == Look::all) {
        take(0, kernel_table().of<T>().checksum(values, array.size()));
        continue;
      }
      const std::int64_t rows = array.shape(0), columns = array.ndim() == 2 ? array.shape(1) : 1;
      std::int64_t column = 0;
      constexpr std::int64_t few = 8;
      for (std::int64_t row = 0; row < rows; row += look == Look::few ? (rows + few - 1) / few : 1) {
        std::uint64_t bits = 0;
        std::memcpy(&bits, values + row * columns + column, sizeof(T));
        take(static_cast<int>(row % chains), bits);
        column += step;
        while (column >= columns) column -= columns;
      }
    }
    for (int chain = 1; chain < chains; ++chain) take(0, hash[chain]);
    return hash[0];
  }

  // Keeps the arrays alive that a call reads. (A py::array that is none yet would cost a new array.)
  struct Held {
    py::object h, c;
  };

  std::unique_ptr<TypedKeptCall<T>> new_kept_call(const Layout& layout) {
    auto kept = std::make_unique<TypedKeptCall<T>>();
    kept->tape = take(idle_tapes_);
    if (!kept->tape) kept->tape = network_->make_tape();
    kept->layout = layout;
    kept->maker = identity_;
    return kept;
  }

  TypedKeptCall<T>& open_tape(KeptCall& any) const { return opened<TypedKeptCall<T>>(any, identity_); }

  std::vector<T*> gradient_pointers(void* block) const {
    std::vector<T*> pointers;
    Arena arena(block);
    for (const std::int64_t room : rooms_) pointers.push_back(arena.take<T>(room));
    return pointers;
  }

  void run_backward(TypedKeptCall<T>& kept, const Backward<T>& call) {
    constexpr std::size_t small = 1 << 16,
                          most_small = 64;  // bytes; steps of a cell that is called in a loop
    std::unique_ptr<Workspace> workspace = take(idle_);
    if (!workspace) workspace = network_->make_workspace();
    kept.busy = true;
    try {
      py::gil_scoped_release unlocked;
      network_->backward(*kept.tape, *workspace, call);
    } catch (...) {
      kept.busy = false;
      throw;
    }
    kept.busy = false;
    idle_.push_back(std::move(workspace));
    kept.consumed = !call.retain;
    if (!kept.consumed) return;
    if (idle_tapes_.size() < (kept.tape->bytes() < small ? most_small : 1)) {
      idle_tapes_.push_back(std::move(kept.tape));
    }
    kept.tape.reset();
    kept.x = kept.y = py::object();
  }

  // NumPy may say anything of the stride of an axis of length 1.
  View contiguous_view(py::handle x, const Layout& layout) const {
    constexpr std::int64_t size = sizeof(T);
    return {data_of<const char>(x),
            {layout.step(config_.input_size) * size, layout.row(config_.input_size) * size, size}};
  }

  // The input of a tape, where it lies now.
  View move_input(TypedKeptCall<T>& kept, py::handle object) const {
    const Sequence now =
        read_sequence(object, py::none(), py::none(), py::none(), kept.layout.time_axis == 1);
    if (now.layout.steps != kept.layout.steps || now.layout.batch != kept.layout.batch) {
      throw py::value_error("x: expected the shape that forward was given");
    }
    kept.x = contiguous(py::reinterpret_borrow<py::array>(now.x));
    return contiguous_view(kept.x, kept.layout);
  }

  // What a call over whole sequences is given.
  struct Sequence {
    py::object x, lengths, resets;
    Held state;
    Layout layout;
    Forward<T> call;
  };

  Sequence read_sequence(py::handle x_object, py::handle state, py::handle lengths, py::handle resets,
                         bool batch_first) const {
    Sequence sequence;
    const py::array x = as_array("x", x_object);
    sequence.x = x;
    const bool batched = x.ndim() != 2;
    const int time_axis = batched && batch_first ? 1 : 0;
    if ((x.ndim() != 3 && x.ndim() != 2) || x.shape(x.ndim() - 1) != config_.input_size || !has_dtype<T>(x)) {
      refuse_sequence("x", x, batched, time_axis);
    }
    Forward<T>& call = sequence.call;
    call.steps = x.shape(time_axis);
    call.batch = batched ? x.shape(1 - time_axis) : 1;
    call.x = {data_of<const char>(x),
              {x.strides(time_axis), batched ? x.strides(1 - time_axis) : 0, x.strides(x.ndim() - 1)}};
    sequence.layout = {call.steps, call.batch, batched, time_axis};
    sequence.state = read_state(state, batched, call);
    if (!lengths.is_none()) sequence.lengths = read_lengths(lengths, batched, call);
    if (!resets.is_none()) sequence.resets = read_resets(resets, batched, time_axis, call);
    return sequence;
  }

  // h, and of an LSTM c; else a null handle.
  std::pair<py::handle, py::handle> state_parts(const char* name, const char* h, const char* c,
                                                py::handle state) const {
    const bool pair = PyTuple_Check(state.ptr()) || PyList_Check(state.ptr());
    if (!config_.has_cell_state()) {
      if (pair)
        throw py::type_error(std::string(name) + ": expected one array " + h + ", got " + type_name(state));
      return {state, {}};
    }
    if (!pair || PySequence_Fast_GET_SIZE(state.ptr()) != 2) {
      throw py::type_error(
          std::string(name) + ": expected a pair (" + h + ", " + c + "), got " +
          (pair ? std::to_string(PySequence_Fast_GET_SIZE(state.ptr())) + " items" : type_name(state)));
    }
    return {PySequence_Fast_GET_ITEM(state.ptr(), 0), PySequence_Fast_GET_ITEM(state.ptr(), 1)};
  }

  Held read_state(py::handle state, bool batched, Forward<T>& call) const {
    Held held;
    if (state.is_none()) return held;
    const auto [h, c] = state_parts("state", "h_0", "c_0", state);
    call.h0 = read_state_part("state (h_0)", h, config_.state_size(), batched, call.batch, held.h);
    if (c) call.c0 = read_state_part("state (c_0)", c, config_.hidden_size, batched, call.batch, held.c);
    return held;
  }

  View read_state_part(const char* name, py::handle object, std::int64_t width, bool batched,
                       std::int64_t batch, py::object& held) const {
    const py::array array = as_array(name, object);
    held = array;
    const std::int64_t chains = config_.num_layers * config_.directions();
    const int last = batched ? 2 : 1;
    if (array.ndim() != last + 1 || array.shape(0) != chains || array.shape(last) != width ||
        (batched && array.shape(1) != batch) || !has_dtype<T>(array)) {
      if (batched) refuse<T>(name, {chains, batch, width}, array);
      refuse<T>(name, {chains, width}, array);
    }
    return {data_of<const char>(array),
            {array.strides(0), batched ? array.strides(1) : 0, array.strides(last)}};
  }

  py::array read_lengths(py::handle object, bool batched, Forward<T>& call) const {
    py::array lengths = as_array("lengths", object);
    const bool fits = batched ? lengths.ndim() == 1 && lengths.shape(0) == call.batch
                              : lengths.size() == 1 && lengths.ndim() <= 1;
    if (!fits || !has_dtype<std::int64_t>(lengths)) {
      refuse<std::int64_t>("lengths", {call.batch}, lengths);
    }
    lengths = py::array_t<std::int64_t, py::array::c_style>::ensure(lengths);
    call.lengths = data_of<const std::int64_t>(lengths);
    for (std::int64_t b = 0; b < call.batch; ++b) {
      if (call.lengths[b] < 0 || call.lengths[b] > call.steps) {
        throw py::value_error("lengths: expected integers in 0.." + std::to_string(call.steps) + ", got " +
                              std::to_string(call.lengths[b]) + " at row " + std::to_string(b));
      }
    }
    return lengths;
  }

  py::array read_resets(py::handle object, bool batched, int time_axis, Forward<T>& call) const {
    py::array resets = as_array("resets", object);
    const bool shaped = batched ? resets.ndim() == 2 && resets.shape(time_axis) == call.steps &&
                                      resets.shape(1 - time_axis) == call.batch
                                : resets.ndim() == 1 && resets.shape(0) == call.steps;
    if (!shaped || !has_dtype<bool>(resets)) {
      if (!batched) refuse<bool>("resets", {call.steps}, resets);
      const std::int64_t sizes[] = {call.steps, call.batch};
      refuse<bool>("resets", {sizes[time_axis], sizes[1 - time_axis]}, resets);
    }
    call.resets = {data_of<const char>(resets),
                   {resets.strides(time_axis), batched ? resets.strides(1 - time_axis) : 0, 0}};
    return resets;
  }

  [[noreturn]] void refuse_sequence(const char* name, const py::array& x, bool batched, int time_axis) const {
    if (!batched) refuse<T>(name, {"T", config_.input_size}, x);
    const char* order[] = {"T", "B"};
    refuse<T>(name, {order[time_axis], order[1 - time_axis], config_.input_size}, x);
  }

  static bool aligned(const py::array& array) {
    return reinterpret_cast<std::uintptr_t>(array.data()) % sizeof(T) == 0;
  }

  static py::array copied(const py::array& array) { return array.attr("copy")("C").cast<py::array>(); }

  // The array itself, or a copy where it has gaps.
  static py::array contiguous(py::array array) {
    return array.flags() & py::array::c_style && aligned(array) ? array : copied(array);
  }

  // The array itself, or a copy if its rows are not adjacent, aligned elements.
  static py::array adjacent(py::array array) {
    constexpr py::ssize_t size = sizeof(T);
    bool fits = aligned(array) && array.strides(array.ndim() - 1) == size;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) fits = fits && array.strides(axis) % size == 0;
    return fits ? array : copied(array);
  }

  py::array state_array(std::int64_t width, const Layout& layout) const {
    const std::int64_t chains = config_.num_layers * config_.directions();
    return layout.batched ? new_array<T, 3>({chains, layout.batch, width}) : new_array<T, 2>({chains, width});
  }

  py::object read_grad_output(py::handle object, const Layout& layout, Backward<T>& call) const {
    if (object.is_none()) return {};
    py::array array = as_array("grad_output", object);
    const std::int64_t width = config_.output_size();
    std::vector<std::int64_t> shape = {layout.steps, layout.batch, width};
    if (layout.time_axis) std::swap(shape[0], shape[1]);
    if (!layout.batched) shape.erase(shape.begin() + 1);
    bool fits = has_dtype<T>(array) && array.ndim() == static_cast<py::ssize_t>(shape.size());
    for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
      fits = array.shape(static_cast<py::ssize_t>(axis)) == shape[axis];
    }
    if (!fits) refuse<T>("grad_output", {shape.begin(), shape.end()}, array);
    array = adjacent(std::move(array));
    call.grad_y = data_of<const T>(array);
    call.grad_y_step = array.strides(layout.time_axis) / static_cast<py::ssize_t>(sizeof(T));
    call.grad_y_row =
        layout.batched ? array.strides(1 - layout.time_axis) / static_cast<py::ssize_t>(sizeof(T)) : 0;
    return array;
  }

  const T* read_grad_part(const char* name, py::handle object, std::int64_t width, const Layout& layout,
                          py::object& held) const {
    if (object.is_none()) return nullptr;
    read_state_part(name, object, width, layout.batched, layout.batch, held);
    held = py::array_t<T, py::array::c_style>::ensure(held);
    return data_of<const T>(held);
  }

  // States of all steps, zeroed.
  py::object make_states(const Layout& layout, Forward<T>& call) const {
    const auto make = [&](std::int64_t width) {
      return py::module_::import("numpy").attr("zeros")(py::tuple(py::cast(states_shape(layout, width))),
                                                        py::dtype::of<T>());
    };
    py::object h = make(config_.state_size());
    call.h_all = data_of<T>(h);
    if (!config_.has_cell_state()) return h;
    py::object c = make(config_.hidden_size);
    call.c_all = data_of<T>(c);
    return py::make_tuple(h, c);
  }

  std::vector<std::int64_t> states_shape(const Layout& layout, std::int64_t width) const {
    std::vector<std::int64_t> shape = {config_.num_layers * config_.directions(), layout.steps, layout.batch,
                                       width};
    if (!layout.batched) shape.erase(shape.begin() + 2);
    return shape;
  }

  Held read_grad_states(py::handle states, const Layout& layout, Backward<T>& call) const {
    Held held;
    if (states.is_none()) return held;
    const auto read = [&](const char* name, py::handle object, std::int64_t width,
                          py::object& kept) -> const T* {
      if (object.is_none()) return nullptr;
      py::array array = as_array(name, object);
      const std::vector<std::int64_t> shape = states_shape(layout, width);
      bool fits = has_dtype<T>(array) && array.ndim() == static_cast<py::ssize_t>(shape.size());
      for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
        fits = array.shape(static_cast<py::ssize_t>(axis)) == shape[axis];
      }
      if (!fits) refuse<T>(name, {shape.begin(), shape.end()}, array);
      kept = py::array_t<T, py::array::c_style>::ensure(array);
      return data_of<const T>(kept);
    };
    const auto [h, c] = state_parts("grad_states", "grad_h", "grad_c", states);
    call.grad_h_all = read(config_.has_cell_state() ? "grad_states (grad_h)" : "grad_states", h,
                           config_.state_size(), held.h);
    if (c) call.grad_c_all = read("grad_states (grad_c)", c, config_.hidden_size, held.c);
    return held;
  }

  Held read_grad_state(py::handle state, const Layout& layout, Backward<T>& call) const {
    Held held;
    if (state.is_none()) return held;
    const auto [h, c] = state_parts("grad_state", "grad_h", "grad_c", state);
    call.grad_hn = read_grad_part("grad_state (grad_h)", h, config_.state_size(), layout, held.h);
    if (c) call.grad_cn = read_grad_part("grad_state (grad_c)", c, config_.hidden_size, layout, held.c);
    return held;
  }

  // Of a block that holds the packed weights in forward, and the gradients after backward.
  std::size_t block_bytes() const {
    Arena counting;
    for (const std::int64_t room : rooms_) counting.take<T>(room);
    return std::max(counting.used(), network_->scratch_bytes());
  }

  // Makes the state arrays, runs the call, and returns (y, state).
  py::tuple finish(py::array y, const Layout& layout, Forward<T>& call) {
    if (!weights_ && !call.parameters) throw std::runtime_error("pack the parameters first");
    py::object hn = state_array(config_.state_size(), layout), cn;
    call.hn = data_of<T>(hn);
    if (config_.has_cell_state()) {
      cn = state_array(config_.hidden_size, layout);
      call.cn = data_of<T>(cn);
    }
    run(call);
    if (!config_.has_cell_state()) return py::make_tuple(std::move(y), std::move(hn));
    return py::make_tuple(std::move(y), py::make_tuple(std::move(hn), std::move(cn)));
  }

  void run(const Forward<T>& call) {
    // Leaving and taking the lock costs some 0.1 us, and more when others wait for it.
    constexpr double worth_unlocking = 200e3;  // multiply-adds: a few microseconds
    const std::shared_ptr<const Weights<T>> weights = weights_;
    std::unique_ptr<Workspace> workspace = take(idle_);
    if (!workspace) workspace = network_->make_workspace();
    if (network_->multiply_adds(call.steps, call.batch) > worth_unlocking) {
      py::gil_scoped_release unlocked;
      network_->forward(weights.get(), *workspace, call);
    } else {
      network_->forward(weights.get(), *workspace, call);
    }
    idle_.push_back(std::move(workspace));
  }

  template <class P>
  static P take(std::vector<P>& idle) {
    if (idle.empty()) return {};
    P last = std::move(idle.back());
    idle.pop_back();
    return last;
  }

  const std::unique_ptr<Network<T>> network_;
  const std::vector<Parameter> parameters_;
  const std::vector<std::int64_t> rooms_;
  std::int64_t parameter_count_ = 0;
  std::shared_ptr<const Weights<T>> weights_;
  std::vector<py::array> packed_;     // what they were packed from
  std::vector<HeldTensor> held_;      // and, of `hold`, the tensors that those arrays view
  std::uint64_t sample_[2] = {0, 0};  // by Look
  std::optional<std::uint64_t> checksum_;
  Noise step_noise_;
  // Touched with the interpreter lock held.
  std::vector<std::unique_ptr<Workspace>> idle_;
  std::vector<std::unique_ptr<StepGradients<T>>> idle_steps_;
  std::vector<std::unique_ptr<Tape<T>>> idle_tapes_;  // memory of the tape that backward consumed last
  py::object last_h_;                                 // of `cell` without a tape
  const std::shared_ptr<Pool> pool_ = std::make_shared<Pool>();
  const std::shared_ptr<const int> identity_ = std::make_shared<int>();
};

// ---- construction ----------------------------------------------------------------------------------

template <class Enum>
std::vector<std::string> names() {
  std::vector<std::string> all;
  for (int i = 0; i < static_cast<int>(Enum::count); ++i) all.push_back(name_of(static_cast<Enum>(i)));
  return all;
}

template <class Enum>
Enum from_name(const char* argument, const std::string& name) {
  std::string known;
  for (int i = 0; i < static_cast<int>(Enum::count); ++i) {
    if (name == name_of(static_cast<Enum>(i))) return static_cast<Enum>(i);
    known += std::string(i ? ", " : "") + name_of(static_cast<Enum>(i));
  }
  throw py::value_error(std::string(argument) + ": expected one of " + known + ", got '" + name + "'");
}

void require(bool holds, const char* argument, const char* expected, std::int64_t got) {
  if (holds) return;
  throw py::value_error(std::string(argument) + ": expected " + expected + ", got " + std::to_string(got));
}

Config read_config(const std::string& cell, std::int64_t input_size, std::int64_t hidden_size,
                   std::int64_t num_layers, bool bidirectional, std::int64_t proj_size, bool bias,
                   const std::string& merge, bool residual, bool layer_norm, double clip) {
  Config config;
  config.cell = from_name<CellKind>("cell", cell);
  config.merge = from_name<Merge>("merge", merge);
  // Products of sizes stay far from 2^63.
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max() / 8;
  require(input_size >= 1 && input_size <= limit, "input_size", "an integer in 1..268435455", input_size);
  require(hidden_size >= 1 && hidden_size <= limit, "hidden_size", "an integer in 1..268435455", hidden_size);
  require(num_layers >= 1 && num_layers <= 65536, "num_layers", "an integer in 1..65536", num_layers);
  require(proj_size >= 0 && proj_size < hidden_size, "proj_size", "an integer from 0 to hidden_size - 1",
          proj_size);
  require(proj_size == 0 || config.has_cell_state(), "proj_size", "0 for a cell that is no LSTM", proj_size);
  config.input_size = input_size;
  config.hidden_size = hidden_size;
  config.num_layers = num_layers;
  config.bidirectional = bidirectional;
  config.proj_size = proj_size;
  config.layer_norm = layer_norm;
  if (!(clip > 0)) throw py::value_error("clip: expected a number > 0, got " + std::to_string(clip));
  if (clip < std::numeric_limits<double>::infinity() && !config.has_cell_state()) {
    throw py::value_error("clip: expected none for a cell without a cell state");
  }
  config.clip = clip;
  config.bias = bias;
  config.residual = residual;
  return config;
}

std::unique_ptr<Engine> make_engine(const std::string& cell, std::int64_t input_size,
                                    std::int64_t hidden_size, std::int64_t num_layers, bool bidirectional,
                                    std::int64_t proj_size, bool bias, const std::string& merge,
                                    bool residual, bool layer_norm, double clip, const std::string& dtype) {
  const Config config = read_config(cell, input_size, hidden_size, num_layers, bidirectional, proj_size, bias,
                                    merge, residual, layer_norm, clip);
  if (dtype == "float32") return std::make_unique<TypedEngine<float>>(config);
  if (dtype == "float64") return std::make_unique<TypedEngine<double>>(config);
  throw py::value_error("dtype: expected float32 or float64, got '" + dtype + "'");
}

template <class AnyEngine>
py::dict parameter_shapes(const AnyEngine& engine) {
  py::dict shapes;
  for (const Parameter& parameter : parameters_of(engine.config())) {
    shapes[py::str(parameter.name)] = py::tuple(py::cast(parameter.shape));
  }
  return shapes;
}

// ---- module functions -------------------------------------------------------------------------------

template <class T>
py::array run_activation(ActivationFunction function, const py::array& x) {
  py::array_t<T, py::array::c_style> in = x;
  py::array_t<T> out(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  kernel_table().of<T>().activation[static_cast<int>(function)](in.data(), out.mutable_data(), in.size());
  return out;
}

py::array activation(const std::string& name, py::handle object) {
  const py::array x = as_array("x", object);
  ActivationFunction function;
  if (name == "exp") {
    function = ActivationFunction::exponential;
  } else if (name == "sigmoid") {
    function = ActivationFunction::sigmoid;
  } else if (name == "tanh") {
    function = ActivationFunction::tanh;
  } else {
    throw py::value_error("name: expected one of exp, sigmoid, tanh, got '" + name + "'");
  }
  if (has_dtype<float>(x)) return run_activation<float>(function, x);
  if (has_dtype<double>(x)) return run_activation<double>(function, x);
  throw py::type_error("x: expected float32 or float64, got " + describe(x));
}

// ---- affine maps ----------------------------------------------------------------------------------

template <class T>
using Matrix = py::array_t<T, py::array::c_style>;

template <class T>
Matrix<T> matrix(const char* name, const py::array& array, const std::vector<Size>& sizes) {
  bool fits = has_dtype<T>(array) && array.ndim() == static_cast<py::ssize_t>(sizes.size()) &&
              (array.flags() & py::array::c_style);
  for (py::ssize_t i = 0; fits && i < array.ndim(); ++i) {
    const std::int64_t wanted = sizes[static_cast<std::size_t>(i)].value;
    fits = wanted < 0 || array.shape(i) == wanted;
  }
  if (!fits) refuse<T>(name, sizes, array);
  return py::reinterpret_borrow<Matrix<T>>(array);
}

template <class T>
py::array run_affine(const py::array& x_given, const py::array& weight_given, const py::object& bias_given) {
  const Matrix<T> weight = matrix<T>("weight", weight_given, {"units", "columns"});
  const Matrix<T> x = matrix<T>("x", x_given, {"rows", weight.shape(1)});
  Matrix<T> bias;
  if (!bias_given.is_none()) bias = matrix<T>("bias", as_array("bias", bias_given), {weight.shape(0)});
  const AffineShape shape{x.shape(0), weight.shape(1), weight.shape(0)};
  Matrix<T> y({shape.rows, shape.units});
  const T* const bias_data = bias_given.is_none() ? nullptr : bias.data();
  T* const out = y.mutable_data();
  const py::gil_scoped_release release;
  affine(shape, x.data(), weight.data(), bias_data, out);
  return y;
}

py::array affine_of(py::handle x, py::handle weight, const py::object& bias) {
  const py::array w = as_array("weight", weight);
  if (has_dtype<double>(w)) return run_affine<double>(as_array("x", x), w, bias);
  return run_affine<float>(as_array("x", x), w, bias);
}

template <class T>
py::tuple run_affine_backward(const py::array& x_given, const py::array& weight_given,
                              const py::array& grad_given, bool input, bool bias) {
  const Matrix<T> weight = matrix<T>("weight", weight_given, {"units", "columns"});
  const Matrix<T> x = matrix<T>("x", x_given, {"rows", weight.shape(1)});
  const Matrix<T> grad = matrix<T>("grad", grad_given, {x.shape(0), weight.shape(0)});
  const AffineShape shape{x.shape(0), weight.shape(1), weight.shape(0)};
  Matrix<T> grad_weight({shape.units, shape.columns});
  Matrix<T> grad_x({input ? shape.rows : 0, shape.columns});
  Matrix<T> grad_bias(std::vector<py::ssize_t>{bias ? shape.units : 0});
  {
    T* const to_x = input ? grad_x.mutable_data() : nullptr;
    T* const to_bias = bias ? grad_bias.mutable_data() : nullptr;
    T* const to_weight = grad_weight.mutable_data();
    const py::gil_scoped_release release;
    affine_backward(shape, x.data(), weight.data(), grad.data(), to_x, to_weight, to_bias);
  }
  return py::make_tuple(input ? py::object(grad_x) : py::none(), grad_weight,
                        bias ? py::object(grad_bias) : py::none());
}

py::tuple affine_backward_of(py::handle x, py::handle weight, py::handle grad, bool input, bool bias) {
  const py::array w = as_array("weight", weight);
  if (has_dtype<double>(w)) {
    return run_affine_backward<double>(as_array("x", x), w, as_array("grad", grad), input, bias);
  }
  return run_affine_backward<float>(as_array("x", x), w, as_array("grad", grad), input, bias);
}

// ---- optimizers -----------------------------------------------------------------------------------

// The n elements of an array that is contiguous.
template <class T>
T* elements(const char* name, const py::array& array, py::ssize_t n, bool changed = true) {
  const bool fits = has_dtype<T>(array) && array.size() == n && (array.flags() & py::array::c_style) &&
                    (!changed || array.writeable());
  if (!fits) {
    throw py::value_error(std::string(name) + ": expected " + std::to_string(n) + " contiguous" +
                          (changed ? ", writable " : " ") + dtype_name<T>() + ", got " + describe(array));
  }
  return static_cast<T*>(const_cast<void*>(array.data()));
}

struct AppliedGradient {
  double factor, clip, l1, l2;
};

template <class T>
struct UpdateCall {
  Update<T> update;
  T* slots[3] = {};

  UpdateCall(const py::array& parameter, const py::array& gradient,
             const std::vector<std::optional<py::array>>& given, const AppliedGradient& applied, double rate)
      : update{parameter.size(),
               elements<T>("parameter", parameter, parameter.size()),
               elements<T>("gradient", gradient, parameter.size(), false),
               applied.factor,
               applied.clip,
               applied.l1,
               applied.l2,
               rate} {
    if (given.size() > 3) throw py::value_error("slots: expected at most 3");
    for (std::size_t i = 0; i < given.size(); ++i) {
      if (given[i]) slots[i] = elements<T>("slots", *given[i], parameter.size());
    }
  }
};

using Slots = std::vector<std::optional<py::array>>;
using Applied = std::tuple<double, double, double, double>;

// call(UpdateCall) without the interpreter lock.
template <class Call>
void update_elements(const py::array& parameter, const py::array& gradient, const Slots& slots,
                     const Applied& applied, double rate, const Call& call) {
  const auto [factor, clip, l1, l2] = applied;
  const AppliedGradient rule{factor, clip, l1, l2};
  if (has_dtype<double>(parameter)) {
    const UpdateCall<double> update(parameter, gradient, slots, rule, rate);
    const py::gil_scoped_release release;
    call(update);
  } else {
    const UpdateCall<float> update(parameter, gradient, slots, rule, rate);
    const py::gil_scoped_release release;
    call(update);
  }
}

void sgd_of(const py::array& parameter, const py::array& gradient, const Slots& slots, const Applied& applied,
            double rate, double momentum, bool nesterov) {
  update_elements(parameter, gradient, slots, applied, rate,
                  [&](const auto& u) { sgd(u.update, u.slots[0], momentum, nesterov); });
}

void rmsprop_of(const py::array& parameter, const py::array& gradient, const Slots& slots,
                const Applied& applied, double rate, double alpha, double eps, double momentum) {
  update_elements(parameter, gradient, slots, applied, rate, [&](const auto& u) {
    if (u.slots[0]) rmsprop(u.update, u.slots[0], u.slots[1], u.slots[2], alpha, eps, momentum);
  });
}

void adam_of(const py::array& parameter, const py::array& gradient, const Slots& slots,
             const Applied& applied, double rate, double keep, double beta1, double beta2, double eps,
             std::int64_t updates) {
  const auto steps = static_cast<double>(updates);
  const double bias1 = 1 - std::pow(beta1, steps), bias2 = 1 - std::pow(beta2, steps);
  update_elements(parameter, gradient, slots, applied, rate, [&](const auto& u) {
    if (u.slots[0] && u.slots[1]) {
      adam(u.update, u.slots[0], u.slots[1], u.slots[2], keep, beta1, beta2, eps, bias1, bias2);
    }
  });
}

double squares_of(const py::array& x) {
  if (has_dtype<double>(x)) {
    const double* const data = elements<double>("x", x, x.size(), false);
    const py::gil_scoped_release release;
    return sum_of_squares(x.size(), data);
  }
  const float* const data = elements<float>("x", x, x.size(), false);
  const py::gil_scoped_release release;
  return sum_of_squares(x.size(), data);
}

double measured_fma_peak(const std::string& dtype, int threads, double seconds) {
  require(threads >= 1, "threads", "a positive integer", threads);
  py::gil_scoped_release unlocked;
  if (dtype == "float32") return fma_peak<float>(threads, seconds);
  if (dtype == "float64") return fma_peak<double>(threads, seconds);
  throw py::value_error("dtype: expected float32 or float64, got '" + dtype + "'");
}

double measured_read_bandwidth(std::int64_t bytes_per_thread, int threads, double seconds) {
  require(threads >= 1, "threads", "a positive integer", threads);
  require(bytes_per_thread >= 4096, "bytes_per_thread", "at least 4096", bytes_per_thread);
  py::gil_scoped_release unlocked;
  return read_bandwidth(static_cast<std::size_t>(bytes_per_thread), threads, seconds);
}

// (T, B, width) of one layer.
// A mask of MaskKind `kind`, as the kernels draw it; its last axis counts units, those before it steps
// (unless the mask is one for all steps) and rows.
py::array mask(const std::string& kind_name, const std::vector<std::int64_t>& shape, double probability,
               std::uint64_t seed, std::int64_t layer, std::int64_t direction) {
  const auto kind = from_name<MaskKind>("kind", kind_name);
  const bool steps = kind == MaskKind::dropout || is_zoneout(kind);
  if (shape.size() != (steps ? 3u : 2u)) {
    throw py::value_error("shape: expected " + std::string(steps ? "3" : "2") + " sizes for a mask of kind " +
                          kind_name + ", got " + std::to_string(shape.size()));
  }
  py::array_t<float> result(shape);
  Noise noise;
  noise.training = true;
  const Masks<float> masks{kernel_table().of<float>(), noise, seed};
  const std::int64_t units = shape.back(), rows = shape[shape.size() - 2];
  float* out = result.mutable_data();
  for (std::int64_t t = 0; t < (steps ? shape[0] : 1); ++t) {
    for (std::int64_t row = 0; row < rows; ++row, out += units) {
      if (is_zoneout(kind)) {
        masks.zoneout_mask(kind, probability, layer, direction, t, row, units, out);
      } else {
        masks.dropout(kind, probability, layer, direction, t, row, 0, units, out);
      }
    }
  }
  return result;
}

// Addresses of GOMP_parallel, omp_in_parallel, omp_get_dynamic, omp_get_thread_limit, omp_get_max_threads.
void borrow_threads_of(std::uintptr_t parallel, std::uintptr_t in_parallel, std::uintptr_t dynamic,
                       std::uintptr_t thread_limit, std::uintptr_t max_threads) {
  using Query = int (*)();
  OpenMp runtime;
  runtime.parallel = reinterpret_cast<decltype(runtime.parallel)>(parallel);
  runtime.in_parallel = reinterpret_cast<Query>(in_parallel);
  runtime.dynamic = reinterpret_cast<Query>(dynamic);
  runtime.thread_limit = reinterpret_cast<Query>(thread_limit);
  runtime.max_threads = reinterpret_cast<Query>(max_threads);
  borrow_threads(runtime);
}

// ---- GPUs -------------------------------------------------------------------------------------------
//
// What comes here is addresses: what lies there, and whether it fits, the callers know (fastrnn/cuda.py and
// fastrnn/torch/cuda.py), who also own all memory. Everything only queues work, except where it says so.

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;
using Stream = std::pair<int, Address>;         // device, cudaStream_t
using Block = std::pair<Address, std::size_t>;  // address, bytes

template <class P>
P* pointer(Address address) {
  return reinterpret_cast<P*>(address);
}
template <class P>
std::vector<P*> pointers(const char* name, const Addresses& addresses, std::size_t count) {
  if (addresses.size() != count) {
    throw py::value_error(std::string(name) + ": expected " + std::to_string(count) + " addresses, got " +
                          std::to_string(addresses.size()));
  }
  std::vector<P*> all;
  for (const Address address : addresses) all.push_back(pointer<P>(address));
  return all;
}
CudaStream stream_of(const Stream& stream) { return {stream.first, pointer<void>(stream.second)}; }
DeviceBlock block_of(const Block& block) { return {pointer<void>(block.first), block.second}; }

class CudaTape {
 public:
  virtual ~CudaTape() = default;
  bool consumed = false;
  bool busy = false;  // another thread's backward is at work on it
};

template <class T>
struct TypedCudaTape final : CudaTape {
  std::unique_ptr<Tape<T>> tape;
  std::int64_t steps, batch;
  std::shared_ptr<const int> maker;  // identity of the engine
};

class CudaEngine {
 public:
  virtual ~CudaEngine() = default;
  virtual std::vector<std::string> plans(int device, std::int64_t steps, std::int64_t batch,
                                         const py::tuple& noise, bool keep) const = 0;
  // Of a tape, 0 unless one is kept, and of a workspace.
  virtual std::pair<std::size_t, std::size_t> forward_bytes(std::int64_t steps, std::int64_t batch,
                                                            const py::tuple& noise, bool lengths, bool resets,
                                                            bool keep) const = 0;
  // `arrays`: x, h0, c0, lengths, resets, y, hn, cn, h_all, c_all; 0: absent, or not wanted. Null without
  // memory for a tape.
  virtual std::unique_ptr<CudaTape> forward(std::int64_t steps, std::int64_t batch, const Addresses& arrays,
                                            const Addresses& parameters, const py::tuple& noise,
                                            std::uint64_t seed, const Stream& stream, const Block& workspace,
                                            const std::optional<Block>& tape) = 0;
  virtual std::size_t backward_bytes(const CudaTape& tape, bool retain) const = 0;
  // `arrays`: x, grad_y, grad_hn, grad_cn, grad_h_all, grad_c_all, grad_x, grad_h0, grad_c0.
  virtual void backward(CudaTape& tape, const Addresses& arrays, const Addresses& parameters,
                        const Addresses& gradients, bool retain, const Stream& stream,
                        const Block& workspace) = 0;

  const Config& config() const { return config_; }

 protected:
  explicit CudaEngine(const Config& config) : config_(config) {}
  const Config config_;
};

template <class T>
class TypedCudaEngine final : public CudaEngine {
 public:
  TypedCudaEngine(const Config& config, bool tf32)
      : CudaEngine(config),
        network_(make_cuda_network<T>(config, tf32)),
        parameter_count_(parameters_of(config).size()) {}

  std::vector<std::string> plans(int device, std::int64_t steps, std::int64_t batch, const py::tuple& noise,
                                 bool keep) const override {
    return network_->plans(device, call_of(steps, batch, noise), keep);
  }

  std::pair<std::size_t, std::size_t> forward_bytes(std::int64_t steps, std::int64_t batch,
                                                    const py::tuple& noise, bool lengths, bool resets,
                                                    bool keep) const override {
    static constexpr std::int64_t any_lengths = 0;
    static constexpr char any_resets = 0;
    Forward<T> call = call_of(steps, batch, noise);
    if (lengths) call.lengths = &any_lengths;
    if (resets) call.resets.data = &any_resets;
    return {keep ? network_->tape_bytes(call) : 0, network_->workspace_bytes(call, keep)};
  }

  std::unique_ptr<CudaTape> forward(std::int64_t steps, std::int64_t batch, const Addresses& arrays,
                                    const Addresses& parameters, const py::tuple& noise, std::uint64_t seed,
                                    const Stream& stream, const Block& workspace,
                                    const std::optional<Block>& tape_memory) override {
    Forward<T> call = call_of(steps, batch, noise);
    const std::vector<char*> at = pointers<char>("arrays", arrays, 10);
    call.x = rows(at[0], batch, config_.input_size);
    call.h0 = rows(at[1], batch, config_.state_size());
    call.c0 = rows(at[2], batch, config_.hidden_size);
    call.lengths = reinterpret_cast<const std::int64_t*>(at[3]);
    if (at[4]) call.resets = {at[4], {batch, 1, 0}};
    T** const results[] = {&call.y, &call.hn, &call.cn, &call.h_all, &call.c_all};
    for (std::size_t i = 0; i < std::size(results); ++i) *results[i] = reinterpret_cast<T*>(at[5 + i]);
    call.y_row = config_.output_size();
    call.y_step = batch * call.y_row;
    call.seed = seed;
    const std::vector<const T*> given = pointers<const T>("parameters", parameters, parameter_count_);
    call.parameters = given.data();
    std::unique_ptr<TypedCudaTape<T>> kept;
    if (tape_memory) {
      kept = std::make_unique<TypedCudaTape<T>>();
      kept->tape = network_->make_tape();
      kept->steps = steps;
      kept->batch = batch;
      kept->maker = identity_;
      network_->prepare(*kept->tape, block_of(*tape_memory));
      call.tape = kept->tape.get();
    }
    work(stream, workspace, [&](Workspace& own) { network_->forward(nullptr, own, call); });
    return kept;
  }

  std::size_t backward_bytes(const CudaTape& tape, bool retain) const override {
    Backward<T> call;
    call.retain = retain;
    return network_->workspace_bytes(*open_tape(tape).tape, call);
  }

  void backward(CudaTape& tape, const Addresses& arrays, const Addresses& parameters,
                const Addresses& gradients, bool retain, const Stream& stream,
                const Block& workspace) override {
    const TypedCudaTape<T>& kept = open_tape(tape);
    Backward<T> call;
    call.retain = retain;
    const std::vector<char*> at = pointers<char>("arrays", arrays, 9);
    call.x = rows(at[0], kept.batch, config_.input_size);
    const T** const given[] = {&call.grad_y, &call.grad_hn, &call.grad_cn, &call.grad_h_all,
                               &call.grad_c_all};
    for (std::size_t i = 0; i < std::size(given); ++i) *given[i] = reinterpret_cast<const T*>(at[1 + i]);
    T** const wanted[] = {&call.grad_x, &call.grad_h0, &call.grad_c0};
    for (std::size_t i = 0; i < std::size(wanted); ++i) *wanted[i] = reinterpret_cast<T*>(at[6 + i]);
    call.grad_y_row = config_.output_size();
    call.grad_y_step = kept.batch * call.grad_y_row;
    call.grad_x_row = config_.input_size;
    call.grad_x_step = kept.batch * call.grad_x_row;
    const auto values = pointers<const T>("parameters", parameters, parameter_count_);
    const auto results = pointers<T>("gradients", gradients, parameter_count_);
    call.parameters = values.data();
    call.gradients = results.data();
    tape.busy = true;
    try {
      work(stream, workspace, [&](Workspace& own) { network_->backward(*kept.tape, own, call); });
    } catch (...) {
      tape.busy = false;
      throw;
    }
    tape.busy = false;
    tape.consumed = !retain;
  }

 private:
  static View rows(char* data, std::int64_t batch, std::int64_t width) {
    constexpr std::int64_t size = sizeof(T);
    return {data, {batch * width * size, width * size, size}};
  }

  static Forward<T> call_of(std::int64_t steps, std::int64_t batch, const py::tuple& noise) {
    Forward<T> call;
    call.steps = steps;
    call.batch = batch;
    call.noise = read_noise(noise);
    return call;
  }

  const TypedCudaTape<T>& open_tape(const CudaTape& any) const {
    return opened<const TypedCudaTape<T>>(any, identity_);
  }

  template <class Call>
  void work(const Stream& stream, const Block& memory, const Call& call) {
    std::unique_ptr<Workspace> workspace;
    if (!idle_.empty()) {
      workspace = std::move(idle_.back());
      idle_.pop_back();
    } else {
      workspace = network_->make_workspace();
    }
    network_->prepare(*workspace, stream_of(stream), block_of(memory));
    {
      const py::gil_scoped_release unlocked;
      call(*workspace);
    }
    idle_.push_back(std::move(workspace));
  }

  const std::unique_ptr<CudaNetwork<T>> network_;
  const std::size_t parameter_count_;
  std::vector<std::unique_ptr<Workspace>> idle_;  // touched with the interpreter lock held
  const std::shared_ptr<const int> identity_ = std::make_shared<int>();
};

std::unique_ptr<CudaEngine> make_cuda_engine(const std::string& cell, std::int64_t input_size,
                                             std::int64_t hidden_size, std::int64_t num_layers,
                                             bool bidirectional, std::int64_t proj_size, bool bias,
                                             const std::string& merge, bool residual, bool layer_norm,
                                             double clip, const std::string& kind) {
  const Config config = read_config(cell, input_size, hidden_size, num_layers, bidirectional, proj_size, bias,
                                    merge, residual, layer_norm, clip);
  if (kind == "float32") return std::make_unique<TypedCudaEngine<float>>(config, false);
  if (kind == "tf32") return std::make_unique<TypedCudaEngine<float>>(config, true);
  if (kind == "float64") return std::make_unique<TypedCudaEngine<double>>(config, false);
  if (kind == "bfloat16") return std::make_unique<TypedCudaEngine<Bfloat16>>(config, false);
  if (kind == "float16") return std::make_unique<TypedCudaEngine<Half>>(config, false);
  throw py::value_error("kind: expected one of float32, tf32, float64, bfloat16, float16, got '" + kind +
                        "'");
}

// Memory on the default stream of a device.
class DeviceMemory {
 public:
  DeviceMemory(std::size_t bytes, int device)
      : stream_{device, nullptr}, block_{cuda_allocate(stream_, bytes), bytes} {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { cuda_release(stream_, block_.data); }

  Address address() const { return reinterpret_cast<Address>(block_.data); }
  std::size_t bytes() const { return block_.bytes; }
  int device() const { return stream_.device; }

  void zero() { cuda_zero(stream_, block_.data, block_.bytes); }

 private:
  const CudaStream stream_;
  const DeviceBlock block_;
};

// C-contiguous arrays of the host.
void upload(const Stream& stream, Address to, const py::array& from) {
  if (!(from.flags() & py::array::c_style)) {
    throw py::value_error("array: expected a C-contiguous one, got " + describe(from));
  }
  const void* const data = from.data();
  const auto count = static_cast<std::size_t>(from.nbytes());
  const py::gil_scoped_release unlocked;
  cuda_upload(stream_of(stream), pointer<void>(to), data, count);
}
void download(const Stream& stream, py::array& to, Address from) {
  if (!(to.flags() & py::array::c_style)) {
    throw py::value_error("array: expected a C-contiguous one, got " + describe(to));
  }
  void* const data = to.mutable_data();  // throws where it is read-only
  const auto count = static_cast<std::size_t>(to.nbytes());
  const py::gil_scoped_release unlocked;
  cuda_download(stream_of(stream), data, pointer<void>(from), count);
}

// Addresses of the device's memory; shape and strides of the array at `from`, in bytes.
void gather_of(const Stream& stream, Address to, Address from, const std::vector<std::int64_t>& shape,
               const std::vector<std::int64_t>& strides, int element_bytes) {
  StridedArray array;
  constexpr std::size_t most = std::size(array.size);
  if (shape.size() != strides.size() || shape.size() > most) {
    throw py::value_error("shape, strides: expected as many of both, at most 4");
  }
  std::copy_backward(shape.begin(), shape.end(), std::end(array.size));
  std::copy_backward(strides.begin(), strides.end(), std::end(array.stride));
  array.data = pointer<void>(from);
  array.element_bytes = element_bytes;
  cuda_gather(stream_of(stream), pointer<void>(to), array);
}

const char* name_of(CudaBuild build) {
  constexpr const char* names[] = {"none", "emulated", "cuda"};
  return names[static_cast<int>(build)];
}

void bind_cuda(py::module_& m) {
  using namespace py::literals;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("cuda_build", [] { return name_of(cuda_build()); });
  m.def("cuda_device_count", &cuda_device_count);
  m.def("cuda_device_name", &cuda_device_name, "device"_a);
  m.def(
      "cuda_device_of", [](Address address) { return cuda_device_of(pointer<void>(address)); }, "address"_a);
  m.def(
      "cuda_wait", [](int device, Address stream) { cuda_wait(stream_of({device, stream})); }, "device"_a,
      "stream"_a, unlocked);
  m.def(
      "cuda_wait_for",
      [](int device, Address stream, Address other) {
        cuda_wait_for(stream_of({device, stream}), stream_of({device, other}));
      },
      "device"_a, "stream"_a, "other"_a);
  m.def("cuda_upload", &upload, "stream"_a, "to"_a, "array"_a);
  m.def("cuda_download", &download, "stream"_a, "array"_a, "source"_a);
  m.def("cuda_gather", &gather_of, "stream"_a, "to"_a, "source"_a, "shape"_a, "strides"_a, "element_bytes"_a);
  py::class_<DeviceMemory>(m, "DeviceMemory")
      .def(py::init<std::size_t, int>(), "nbytes"_a, "device"_a)
      .def_property_readonly("address", &DeviceMemory::address)
      .def_property_readonly("nbytes", &DeviceMemory::bytes)
      .def_property_readonly("device", &DeviceMemory::device)
      .def("zero", &DeviceMemory::zero);
  py::class_<CudaTape>(m, "CudaTape").def_readonly("consumed", &CudaTape::consumed);
  py::class_<CudaEngine>(m, "CudaEngine")
      .def(py::init(&make_cuda_engine), "cell"_a, "input_size"_a, "hidden_size"_a, "num_layers"_a,
           "bidirectional"_a, "proj_size"_a, "bias"_a, "merge"_a, "residual"_a, "layer_norm"_a, "clip"_a,
           "kind"_a)
      .def_property_readonly("parameter_shapes", &parameter_shapes<CudaEngine>)
      .def("plans", &CudaEngine::plans, "device"_a, "steps"_a, "batch"_a, "noise"_a, "keep"_a)
      .def("forward_bytes", &CudaEngine::forward_bytes, "steps"_a, "batch"_a, "noise"_a, "lengths"_a,
           "resets"_a, "keep"_a)
      .def("forward", &CudaEngine::forward, "steps"_a, "batch"_a, "pointers"_a, "parameters"_a, "noise"_a,
           "seed"_a, "stream"_a, "workspace"_a, "tape"_a)
      .def("backward_bytes", &CudaEngine::backward_bytes, "tape"_a, "retain"_a)
      .def("backward", &CudaEngine::backward, "tape"_a, "pointers"_a, "parameters"_a, "gradients"_a,
           "retain"_a, "stream"_a, "workspace"_a);
}

py::dict config() {
  using namespace py::literals;
  return py::dict("version"_a = FASTRNN_VERSION, "isa"_a = kernel_table().isa, "isas"_a = usable_isas(),
                  "threads"_a = num_threads(), "cuda"_a = name_of(cuda_build()),
                  "compiler"_a = FASTRNN_COMPILER);
}

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(_core, m) {
  using namespace fastrnn;
  using namespace py::literals;
  kernel_table();  // a wrong FASTRNN_ISA or FASTRNN_NUM_THREADS fails the import, not a later call
  num_threads();
  // Now, because the first use leaves the interpreter lock: a thread that takes it meanwhile and comes to a
  // static variable that waits for this would hold it for ever.
  py::detail::npy_api::get();
  m.attr("__version__") = FASTRNN_VERSION;
  m.attr("CELLS") = py::tuple(py::cast(names<CellKind>()));
  m.attr("MERGES") = py::tuple(py::cast(names<Merge>()));
  m.def("config", &config);
  m.def("set_num_threads", &set_num_threads, "n"_a);
  m.def("get_num_threads", &num_threads);
  m.def("activation", &activation, "name"_a, "x"_a);
  m.def("affine", &affine_of, "x"_a, "weight"_a, "bias"_a);
  m.def("affine_backward", &affine_backward_of, "x"_a, "weight"_a, "grad"_a, "input"_a, "bias"_a);
  m.def("sgd", &sgd_of);
  m.def("rmsprop", &rmsprop_of);
  m.def("adam", &adam_of);
  m.def("sum_of_squares", &squares_of);
  m.def("borrow_threads_of", &borrow_threads_of);
  m.def("read_tensors_of", &read_tensors_of, "tensor"_a, "parameter"_a);
  m.def("common_bits", &common_bits);
  m.def("mask", &mask, "kind"_a, "shape"_a, "probability"_a, "seed"_a, "layer"_a, "direction"_a);
  m.def("fma_peak", &measured_fma_peak, "dtype"_a, "threads"_a, "seconds"_a);
  m.def("read_bandwidth", &measured_read_bandwidth, "bytes_per_thread"_a, "threads"_a, "seconds"_a);
  // Copying and unpickling would make one without a call behind it.
  const auto no_new = py::custom_type_setup([](PyHeapTypeObject* type) {
    type->ht_type.tp_new = [](PyTypeObject*, PyObject*, PyObject*) -> PyObject* {
      PyErr_SetString(PyExc_TypeError, "Tape: made by a layer's forward, and by nothing else");
      return nullptr;
    };
  });
  py::class_<KeptCall> tape(
      m, "Tape", "What a layer's ``backward`` needs of one ``forward`` call, which made it.", no_new);
  tape.def_property_readonly("nbytes", &KeptCall::bytes,
                             "Memory of its gates, cell states and inner outputs.")
      .def_readonly("consumed", &KeptCall::consumed, "Whether ``backward`` has overwritten it.")
      .def("__repr__", [](const KeptCall& kept) {
        return kept.consumed ? std::string("<fastrnn.Tape, consumed>")
                             : "<fastrnn.Tape, " + std::to_string(kept.bytes()) + " bytes>";
      });
  tape.attr("__module__") = "fastrnn";
  py::class_<KeptSteps>(m, "KeptSteps");
  py::class_<Engine>(m, "Engine")
      .def(py::init(&make_engine), "cell"_a, "input_size"_a, "hidden_size"_a, "num_layers"_a,
           "bidirectional"_a, "proj_size"_a, "bias"_a, "merge"_a, "residual"_a, "layer_norm"_a, "clip"_a,
           "dtype"_a)
      .def_property_readonly("parameter_shapes", &parameter_shapes<Engine>)
      .def("pack", &Engine::pack, "parameters"_a)
      .def("release", &Engine::release)
      .def("forward", &Engine::forward, "x"_a, "state"_a, "lengths"_a, "resets"_a, "batch_first"_a, "noise"_a,
           "seed"_a, "keep"_a, "parameters"_a, "guard"_a, "tensors"_a, "exact"_a, "all_states"_a)
      .def("set_zoneout", &Engine::set_zoneout, "h"_a, "c"_a)
      .def("check", &Engine::check, "x"_a, "state"_a, "lengths"_a, "resets"_a, "batch_first"_a)
      .def("backward", &Engine::backward, "tape"_a, "parameters"_a, "grad_output"_a, "grad_state"_a,
           "retain"_a, "input"_a, "x"_a, "borrow"_a, "grad_states"_a)
      .def("cell", &Engine::cell, "x"_a, "h"_a, "c"_a, "weights"_a, "exact"_a, "keep"_a)
      .def("cell_backward", &Engine::cell_backward, "tape"_a, "weights"_a, "grad_h"_a, "grad_c"_a, "x"_a,
           "input"_a, "steps"_a)
      .def("keep_steps", &Engine::keep_steps)
      .def("add_up", &Engine::add_up, "steps"_a)
      .def("step", &Engine::step, "x"_a, "state"_a = py::none());
  bind_cuda(m);
}

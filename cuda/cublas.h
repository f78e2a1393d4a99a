// The few functions of cuBLAS that the driver uses, found when they are first needed: the library loads, and
// works on the CPU, where there is none.
#pragma once

#include <cublas_v2.h>
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastrnn {

// cuBLAS from 12 on.
class Cublas {
 public:
  static const Cublas& instance() {
    static const Cublas library;  // once, whichever thread comes first; again after a failure
    return library;
  }

  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  decltype(&cublasSetWorkspace_v2) set_workspace;
  decltype(&cublasSetMathMode) set_math_mode;
  decltype(&cublasGemmStridedBatchedEx_64) multiply;

  static void check(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw std::runtime_error(std::string("device='cuda': cuBLAS: ") + what + " failed with status " +
                             std::to_string(static_cast<int>(status)));
  }

 private:
  Cublas() {
    library_ = load();
    try {
      find("cublasCreate_v2", create);
      find("cublasDestroy_v2", destroy);
      find("cublasSetStream_v2", set_stream);
      find("cublasSetWorkspace_v2", set_workspace);
      find("cublasSetMathMode", set_math_mode);
      find("cublasGemmStridedBatchedEx_64", multiply);
    } catch (...) {
      dlclose(library_);
      throw;
    }
  }

  static std::string name_of(const char* library) {
    return std::string(library) + ".so." + std::to_string(CUBLAS_VER_MAJOR);
  }

  // What cuBLAS needs lies beside it and is not always found from there.
  static void* load_from(const std::string& path) {
    const std::size_t end = path.rfind('/');
    if (end != std::string::npos) {
      (void)dlopen((path.substr(0, end + 1) + name_of("libcublasLt")).c_str(), RTLD_NOW | RTLD_LOCAL);
    }
    return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  }

  static void* load() {
    const auto reason = [] {
      const char* const why = dlerror();
      return std::string(why ? why : "nothing");
    };
    if (const char* const path = std::getenv("FASTRNN_CUBLAS"); path && *path) {
      if (void* const library = load_from(path)) return library;
      throw std::runtime_error(std::string("device='cuda': FASTRNN_CUBLAS: expected the path of ") +
                               name_of("libcublas") + ", got " + path + ": " + reason());
    }
    // A copy that the process has already is found by this name, too, wherever it lies.
    const std::string name = name_of("libcublas");
    if (void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    const std::string why = reason();
    if (void* const library = load_from_packages(name)) return library;
    throw std::runtime_error("device='cuda': expected " + name +
                             " in the search path of libraries, got: " + why +
                             "; the CUDA toolkit has it, and the package nvidia-cublas. FASTRNN_CUBLAS may "
                             "name its path");
  }

  // Where the package nvidia-cublas has it, beside our own.
  static void* load_from_packages(const std::string& name) {
    Dl_info self{};
    if (!dladdr(reinterpret_cast<void*>(&Cublas::instance), &self) || !self.dli_fname) return nullptr;
    std::string packages = self.dli_fname;  // .../site-packages/fastrnn/_core.so
    for (int i = 0; i < 2; ++i) {
      const std::size_t end = packages.rfind('/');
      if (end == std::string::npos) return nullptr;
      packages.resize(end);
    }
    const std::string folder = CUBLAS_VER_MAJOR < 13 ? "cublas" : "cu" + std::to_string(CUBLAS_VER_MAJOR);
    return load_from(packages + "/nvidia/" + folder + "/lib/" + name);
  }

  template <class Function>
  void find(const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (!function) throw std::runtime_error(std::string("device='cuda': expected cuBLAS with ") + name);
  }

  void* library_ = nullptr;
};

// Handles, which belong to a device and serve one call at a time. Those that come back serve the next call:
// making one takes long. None is destroyed, since the driver may be gone before us.
class CublasHandles {
 public:
  static CublasHandles& instance() {
    static auto* const handles = new CublasHandles;
    return *handles;
  }

  // Of the current device, whose number is given.
  cublasHandle_t take(int device) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<cublasHandle_t>& free = free_[device];
      if (!free.empty()) {
        cublasHandle_t const handle = free.back();
        free.pop_back();
        return handle;
      }
    }
    const Cublas& cublas = Cublas::instance();
    cublasHandle_t handle = nullptr;
    Cublas::check(cublas.create(&handle), "creation of a handle");
    // 16-bit results are sums in float32, rounded once.
    const auto mode =
        static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    const cublasStatus_t status = cublas.set_math_mode(handle, mode);
    if (status != CUBLAS_STATUS_SUCCESS) (void)cublas.destroy(handle);
    Cublas::check(status, "choice of the precision");
    return handle;
  }

  void give_back(int device, cublasHandle_t handle) noexcept {
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_[device].push_back(handle);
    } catch (const std::bad_alloc&) {
      (void)Cublas::instance().destroy(handle);
    }
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<cublasHandle_t>> free_;
};

}  // namespace fastrnn

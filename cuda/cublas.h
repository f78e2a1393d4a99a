// The two functions of cuBLAS that the driver uses, found when they are first needed: the library loads, and
// works on the CPU, where there is none.
#pragma once

#include <cublas_v2.h>
#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastrnn {

// cuBLAS from 12 on.
class Cublas {
 public:
  static const Cublas& instance() {
    static const Cublas library;  // once, whichever thread comes first
    return library;
  }

  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  decltype(&cublasSetWorkspace_v2) set_workspace;
  decltype(&cublasGemmStridedBatchedEx_64) multiply;

  static void check(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw std::runtime_error(std::string("device='cuda': cuBLAS: ") + what + " failed with status " +
                             std::to_string(static_cast<int>(status)));
  }

 private:
  Cublas() {
    // A copy that the process has already is found by this name, too, wherever it lies.
    const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* const why = dlerror();
      throw std::runtime_error("device='cuda': expected " + name +
                               " in the search path of libraries, got: " + (why ? why : "nothing") +
                               "; the CUDA toolkit has it, and the package nvidia-cublas");
    }
    find(library, "cublasCreate_v2", create);
    find(library, "cublasDestroy_v2", destroy);
    find(library, "cublasSetStream_v2", set_stream);
    find(library, "cublasSetWorkspace_v2", set_workspace);
    find(library, "cublasGemmStridedBatchedEx_64", multiply);
  }

  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw std::runtime_error(std::string("device='cuda': expected cuBLAS with ") + name);
  }
};

}  // namespace fastrnn

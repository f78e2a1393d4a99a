// Networks on an NVIDIA GPU. In a build without CUDA all of this is there and throws.
#pragma once

#include "rnn.h"

namespace fastrnn {

// Whether this build has kernels for GPUs. Says nothing of the machine.
bool built_with_cuda();

// On the current device; steps.h says where arrays must lie. Throws where there is no GPU.
template <class T>
std::unique_ptr<Network<T>> make_cuda_network(const Config& config);

// The cudaStream_t that calls with the workspace go to, from the next one on; null: the default stream, as it
// is at first. What the workspace and its tapes were used for before must be done, or waited for by the
// stream.
void set_cuda_stream(Workspace& workspace, void* stream);

}  // namespace fastrnn

// In the place of library_conv.cc in a build without cuDNN.
#include "cuda/library_conv.h"

namespace sensorium::cuda {

std::unique_ptr<LibraryConv> LibraryConv::Create(CudaBuffer&, Queue&) { return nullptr; }

}  // namespace sensorium::cuda

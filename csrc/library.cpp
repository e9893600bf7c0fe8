// The Python module instseg_d2._C. Importing it loads this library, whose static initialisers register the
// operators with PyTorch; the module itself only tells what it was built for. It uses nothing but Python's
// stable interface, so one build serves every Python from 3.9 on.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x03090000
#endif
#include <Python.h>

namespace {

#ifdef INSTSEG_WITH_CUDA
const char* const kBuiltFor = "cuda";
#else
const char* const kBuiltFor = "cpu";
#endif

int execute(PyObject* module) {
  return PyModule_AddStringConstant(module, "built_for", kBuiltFor);
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "Compiled operators of instseg_d2.", 0, nullptr, slots, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit__C(void) {
  return PyModuleDef_Init(&definition);
}

#!/usr/bin/env bash
# What only a GPU can show, in one run of less than ten minutes and without a network: the kernel is built, the GPU tests
# run and none may be skipped, the kernel runs under compute-sanitizer, and the benchmarks write their JSON.
#
#   benchmarks/gpu_check.sh [--wheels DIR] [--out DIR]
#
#   --wheels DIR   wheels of what this Python lacks (Zennit, say); they are unpacked into a temporary folder
#   --out DIR      where kernel_gpu.json, explanation_gpu_*.json, tensorrt_*.json, junit.xml and the sanitizers' logs go
#                  (default: out/gpu_check)
#
# PYTHON names the interpreter (default: python3). It needs torch, NumPy, pytest and cuda-core; nothing is installed.
# Exit code: 0 where all is well, 1 where a step failed, 2 where there is no GPU, or the options are wrong.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

python=${PYTHON:-python3}
wheels= out=out/gpu_check
while [ $# -gt 0 ]; do
  case $1 in
    --wheels | --out)
      [ $# -ge 2 ] || { echo "error: $1 wants a folder" >&2; exit 2; }
      if [ "$1" = --wheels ]; then wheels=$2; else out=$2; fi
      shift 2 ;;
    *) echo "error: unknown option $1: gpu_check.sh [--wheels DIR] [--out DIR]" >&2; exit 2 ;;
  esac
done
if [ -n "$wheels" ] && ! ls "$wheels"/*.whl > /dev/null 2>&1; then
  echo "error: no wheels in $wheels" >&2
  exit 2
fi

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
failed=()
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
# Seconds for a step: what it may take, and never more than is left of the ten minutes.
limit() { local left=$((585 - SECONDS)); [ "$left" -gt 5 ] || left=5; echo $(($1 < left ? $1 : left)); }
has() { "$python" -c "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))" "$@" 2> /dev/null; }

for wheel in ${wheels:+"$wheels"/*.whl}; do
  "$python" -m zipfile -e "$wheel" "$scratch/site"
done
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/deploy:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
export SELREL_KERNEL_CACHE="$scratch/kernels" SELREL_REQUIRE_CUDA=1 PYTHONDONTWRITEBYTECODE=1
has torch numpy pytest || { echo "error: $python lacks torch, NumPy or pytest" >&2; exit 2; }

arch=$("$python" -c 'import torch
print("%d%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "none")')
if command -v nvcc > /dev/null; then
  # Without a GPU, sm_90 stands for the one there would be.
  step "nvcc builds the kernel, and it does not spill"
  built=${arch/none/90}
  "$python" -m selrel_kernels.build --arch "$built" --out "$scratch/cubins" | tee "$out/build.txt" || failed+=("build")
  step "the TensorRT plugin, where TensorRT's headers are"
  "$python" -m selrel_kernels.build --plugin --arch "$built" --out "$scratch"
  # 2: it is left out, and it was said why.
  case $? in 0 | 2) ;; *) failed+=("build of the plugin") ;; esac
else
  step "no nvcc: NVRTC alone builds the kernel"
fi
if [ "$arch" = none ]; then
  echo "error: everything from here on needs a CUDA device, and torch sees none" >&2
  exit 2
fi
"$python" -c 'import torch
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)'
has cuda.core || { echo "error: $python lacks cuda-core, which launches the kernel: pass its wheel with --wheels" >&2; exit 2; }

step "the kernel's tests; none may be skipped for want of a GPU"
timeout "$(limit 180)" "$python" -m pytest -q -p no:cacheprovider -m cuda tests/selrel_kernels --junitxml "$out/junit.xml" \
  || failed+=("tests of the kernel")

if has zennit av cv2 click; then
  step "the GPU tests of the other packages"
  has tensorrt || has tensorrt_rtx || echo "left out: TensorRT, which is not installed"
  "$python" -c 'import onnxruntime as o, sys; sys.exit("CUDAExecutionProvider" not in o.get_available_providers())' \
    2> /dev/null || echo "left out: ONNX Runtime's CUDA provider, which is not installed"
  timeout "$(limit 200)" "$python" -m pytest -q -rs -p no:cacheprovider -m cuda tests/selrel_zennit tests/selrel_deploy
  # 5: there are none.
  case $? in 0 | 5) ;; *) failed+=("tests of the other packages") ;; esac
else
  step "left out: the GPU tests of the other packages, which need Zennit, PyAV, OpenCV and click (--wheels)"
fi

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step "compute-sanitizer, $tool"
    # Without torch's pools a tensor is an allocation of its own, and the sanitizer sees where it ends.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$(limit 90)" \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name kns=select_motion \
      "$python" benchmarks/kernel_gpu.py --small 2>&1 | tee "$out/$tool.txt" | tail -5
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$tool")
  done
else
  step "left out: compute-sanitizer, which is not there"
fi

step "the benchmark of the kernel"
timeout "$(limit 120)" "$python" benchmarks/kernel_gpu.py --out "$out/kernel_gpu.json" || failed+=("benchmark of the kernel")

if has zennit av cv2 click onnx_ir; then
  # All batches and precisions take longer: selrel bench --model c3d --weights random --device cuda --precisions all
  for precision in bf16 tf32 fp32; do
    step "the benchmark of selective DTD of C3D, $precision"
    timeout "$(limit 150)" "$python" -m selrel_zennit bench --model c3d --weights random --device cuda \
      --precisions "$precision" --batches 1 --rounds 100 --json "$out/explanation_gpu_$precision.json" \
      || failed+=("benchmark of the explanation, $precision")
  done
else
  step "left out: the benchmark of the explanation, which needs Zennit, PyAV, OpenCV, click and onnx-ir (--wheels)"
fi

if has zennit av cv2 click onnx_ir && { has tensorrt || has tensorrt_rtx; }; then
  step "selective DTD of C3D in TensorRT: the selection in the engine, and by the kernel behind it"
  "$python" -m selrel_zennit export --model c3d --weights random --method dtd --precision fp16 -o "$scratch/dtd.onnx" \
    || failed+=("export")
  for selection in graph kernel; do
    timeout "$(limit 120)" "$python" -m selrel_zennit bench --artifact "$scratch/dtd.onnx" --runners tensorrt \
      --runner-option "selection=$selection" --rounds 100 --json "$out/tensorrt_$selection.json" \
      || failed+=("TensorRT, selection=$selection")
  done
fi

step "done: ${#failed[@]} steps failed${failed:+: $(IFS=,; echo "${failed[*]}")}"
[ ${#failed[@]} -eq 0 ]

"A start-up file of the kernel: counts the checks of a notebook that have passed, those in a branch not taken left out."
def _install(shell):
    import ast, re

    def counted(result=None):
        "Runs after a check that did not raise, and hands its result on."
        shell.checks_passed += 1
        return result

    def call(like, *args):
        f = ast.parse('get_ipython().counted', mode='eval').body
        return ast.copy_location(ast.Expr(ast.copy_location(ast.Call(f, list(args), []), like)), like)

    class Counter(ast.NodeTransformer):
        "Wraps every statement that is a call of test_* or check_*, and follows every assert, at the level of the cell."
        def visit_FunctionDef(self, node): return node
        visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef
        def visit_Assert(self, node): return [node, call(node)]
        def visit_Expr(self, node):
            f = getattr(node.value, 'func', None)
            name = getattr(f, 'id', getattr(f, 'attr', ''))
            # The verdict on an exercise is for the reader, and may be that it is empty.
            return call(node, node.value) if re.match('(test|check)_(?!exercise$)', name) else node

    shell.checks_passed, shell.counted = 0, counted
    shell.ast_transformers.append(Counter())

_install(get_ipython())
del _install
